//! Kernel objects that are refused: by the names under which the kernel shows them, with the reason and what to do.

/// Why an object cannot be saved, and what to do about it.
pub type Refused = (&'static str, &'static str);

/// By the name of an anonymous inode, of which descriptors and mappings show the same: how it begins, reason, advice.
const NAMES: [(&str, Refused); 20] = [
    (
        "[io_uring]",
        ("requests to an io_uring may be on their way in the kernel", "let the program close it; many have a switch to do without"),
    ),
    ("[userfaultfd]", ("page faults wait at a userfaultfd for the program's answer", "end the program's own use of userfaultfd first")),
    ("[perf_event]", ("perf events count what happened on this machine", "stop the measurement first")),
    ("bpf-map", ("bpf maps are shared with the kernel", "detach and close them first")),
    ("bpf-prog", ("bpf programs run in the kernel", "detach and close them first")),
    ("bpf_link", ("bpf programs are attached in the kernel", "detach them and close the link first")),
    ("bpf-link", ("bpf programs are attached in the kernel", "detach them and close the link first")),
    ("btf", ("bpf type information is shared with the kernel", "close it first")),
    ("bpf", ("bpf objects are shared with the kernel", "close them first")),
    ("kvm-vm", ("virtual machines run in the kernel", "save the virtual machine by its own means")),
    ("kvm-vcpu", ("virtual machines run in the kernel", "save the virtual machine by its own means")),
    ("kvm", ("virtual machines run in the kernel", "save the virtual machine by its own means")),
    ("[vfio", ("the program drives a device by itself (vfio)", "give the device back first")),
    ("[fscontext]", ("a file system is just being configured (fsopen)", "try again a moment later")),
    ("[landlock-ruleset]", ("a landlock ruleset is just being made", "try again a moment later")),
    ("seccomp notify", ("system calls of another process wait for the program's answer", "end the supervised process first")),
    ("[seccomp notify]", ("system calls of another process wait for the program's answer", "end the supervised process first")),
    ("sync_file", ("a fence of a graphics device cannot be read", "close the graphics device first")),
    ("[uhid]", ("the device's state cannot be read", "close it first")),
    ("[gpio", ("the device's state cannot be read", "close it first")),
];

/// By the number of a character device: major, minor (`None` for all), reason, advice.
const DEVICES: [(u32, Option<u32>, Refused); 7] = [
    (10, Some(229), ("it serves a file system (FUSE), whose requests wait for the program's answer", "unmount the file system first")),
    (10, Some(232), ("virtual machines run in the kernel", "save the virtual machine by its own means")),
    (10, Some(223), ("it is an input device of the program's own (uinput)", "close it first")),
    (10, Some(130), ("it is a watchdog that resets the machine when nobody answers it", "close it properly first")),
    (226, None, ("the state of a graphics device cannot be read", "let the program close the display first")),
    (116, None, ("the state of a sound device cannot be read", "stop the sound first")),
    (13, None, ("the state of an input device cannot be read", "close it first")),
];

/// The refusal for what a descriptor or a mapping shows as its name; `None` for what is not known here.
pub fn by_name(name: &[u8]) -> Option<Refused> {
    if name == b"/secretmem (deleted)" {
        return Some(("secret memory cannot be read by anyone but its owner (memfd_secret)", "let the program unmap it first"));
    }
    let name = name.strip_prefix(b"anon_inode:")?;
    NAMES.iter().find(|n| name.starts_with(n.0.as_bytes())).map(|n| n.1)
}

/// The refusal for a character device.
pub fn by_device(major: u32, minor: u32) -> Option<Refused> {
    DEVICES.iter().find(|d| d.0 == major && d.1.is_none_or(|m| m == minor)).map(|d| d.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_comes_first() {
        for (n, name) in NAMES.iter().enumerate() {
            let hidden = NAMES[..n].iter().find(|before| name.0.starts_with(before.0));
            assert!(hidden.is_none(), "{} is never reached", name.0);
        }
        assert_eq!(by_name(b"anon_inode:[io_uring]").unwrap(), NAMES[0].1);
        assert_eq!(by_name(b"anon_inode:kvm-vcpu:0").unwrap(), by_name(b"anon_inode:kvm-vm").unwrap());
        assert_eq!(by_name(b"/usr/lib/[io_uring]"), None);
        assert_eq!(by_name(b"anon_inode:[something new]"), None);
    }

    #[test]
    fn devices() {
        assert!(by_device(226, 128).is_some() && by_device(10, 229).is_some());
        assert_eq!(by_device(10, 1), None);
    }
}
