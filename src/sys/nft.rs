//! nftables without a program of its own: transactions of nfnetlink messages (`linux/netfilter/nf_tables.h`).
//!
//! A [`Batch`] is taken by the kernel as a whole or not at all. Names and numbers are those of the kernel's headers; all
//! numbers in attributes are big-endian, what stands in registers is as it is in the packet.

use super::netlink::{Socket, align, attributes, put};
use nix::errno::Errno;
use std::io;

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's type.
const NFTABLES: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = NFTABLES;
const GETTABLE: u16 = NFTABLES | 1;
const DELTABLE: u16 = NFTABLES | 2;
const NEWCHAIN: u16 = NFTABLES | 3;
const NEWRULE: u16 = NFTABLES | 6;
const DELRULE: u16 = NFTABLES | 8;
const NEWSET: u16 = NFTABLES | 9;
const NEWSETELEM: u16 = NFTABLES | 12;
const DELSETELEM: u16 = NFTABLES | 14;
/// `NFPROTO_INET`: a table for IPv4 and IPv6.
pub const INET: u8 = 1;
/// The bit of an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEAD: usize = 20;
/// Elements in one message: a list's length has 16 bits.
const ELEMENTS: usize = 512;

/// With what the names of meio's own tables begin.
pub const OURS: &str = "meio-";

/// The table vanishes with the netlink socket that made it, however that is closed (Linux 5.12).
pub const OWNER: u32 = 2;

/// `NF_DROP`, as a verdict.
pub const DROP: i32 = 0;
/// `NF_ACCEPT`, as a verdict.
pub const ACCEPT: i32 = 1;
/// `NFT_GOTO`, as a verdict.
const GOTO: i32 = -4;

/// `NF_INET_LOCAL_IN`.
pub const INPUT: u32 = 1;
/// `NF_INET_LOCAL_OUT`.
pub const OUTPUT: u32 = 3;
/// `NF_INET_POST_ROUTING`.
pub const POSTROUTING: u32 = 4;

/// Where a packet's bytes are loaded from: `NFT_PAYLOAD_NETWORK_HEADER`.
pub const NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
pub const TRANSPORT: u32 = 2;
/// `NFT_META_MARK`.
pub const MARK: u32 = 3;
/// `NFT_META_NFPROTO`: one byte.
pub const NFPROTO: u32 = 15;
/// `NFT_META_L4PROTO`: one byte.
pub const L4PROTO: u32 = 16;

/// The register that begins with the n-th group of four bytes, `NFT_REG32_00 + n`.
pub fn register(n: u32) -> u32 {
    8 + n
}

/// Adds an attribute that holds what `fill` adds.
fn nest(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = message.len();
    put(message, kind | NESTED, &[]);
    fill(message);
    let length = (message.len() - at) as u16;
    message[at..at + 2].copy_from_slice(&length.to_ne_bytes());
}

fn number(message: &mut Vec<u8>, kind: u16, value: u32) {
    put(message, kind, &value.to_be_bytes());
}

fn name(message: &mut Vec<u8>, kind: u16, value: &str) {
    let mut text = value.as_bytes().to_vec();
    text.push(0);
    put(message, kind, &text);
}

/// The expressions of a rule, from left to right; each goes on with the next only where it matches.
#[derive(Debug, Default)]
pub struct Rule(Vec<u8>);

impl Rule {
    /// An empty one, which every packet matches.
    pub fn new() -> Self {
        Rule::default()
    }

    fn expression(mut self, kind: &str, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        // NFTA_LIST_ELEM holds NFTA_EXPR_NAME and NFTA_EXPR_DATA.
        nest(&mut self.0, 1, |m| {
            name(m, 1, kind);
            nest(m, 2, fill);
        });
        self
    }

    /// Loads what the kernel knows of the packet into a register.
    pub fn meta(self, key: u32, to: u32) -> Self {
        self.expression("meta", |m| {
            number(m, 1, to);
            number(m, 2, key);
        })
    }

    /// Loads bytes of the packet into a register.
    pub fn payload(self, base: u32, offset: u32, length: u32, to: u32) -> Self {
        self.expression("payload", |m| {
            for (kind, value) in [(1, to), (2, base), (3, offset), (4, length)] {
                number(m, kind, value);
            }
        })
    }

    /// The register holds exactly these bytes.
    pub fn equals(self, register: u32, value: &[u8]) -> Self {
        self.expression("cmp", |m| {
            number(m, 1, register);
            number(m, 2, 0);
            nest(m, 3, |m| {
                put(m, 1, value);
            });
        })
    }

    /// What stands from the register on is in a set of the same table.
    pub fn lookup(self, set: &str, register: u32) -> Self {
        self.expression("lookup", |m| {
            name(m, 1, set);
            number(m, 2, register);
        })
    }

    /// Counts packets and bytes.
    pub fn counter(self) -> Self {
        self.expression("counter", |_| {})
    }

    fn immediate(self, verdict: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |m| {
            number(m, 1, 0);
            nest(m, 2, |m| {
                nest(m, 2, |m| {
                    number(m, 1, verdict as u32);
                    chain.into_iter().for_each(|chain| name(m, 2, chain));
                });
            });
        })
    }

    /// Ends the table's say: [`ACCEPT`] or [`DROP`].
    pub fn verdict(self, verdict: i32) -> Self {
        self.immediate(verdict, None)
    }

    /// Goes on in another chain of the table, and does not come back.
    pub fn goto(self, chain: &str) -> Self {
        self.immediate(GOTO, Some(chain))
    }

    /// Into a queue. Needs `CONFIG_NFT_QUEUE`.
    pub fn queue(self, queue: u16, unserved: Unserved) -> Self {
        const BYPASS: u16 = 1;
        let flags = if unserved == Unserved::Passes { BYPASS } else { 0 };
        self.expression("queue", |m| {
            for (kind, value) in [(1, queue), (2, 1), (3, flags)] {
                put(m, kind, &value.to_be_bytes());
            }
        })
    }

    /// The same by the target that iptables has for it. Needs `CONFIG_NFT_COMPAT` and `CONFIG_NETFILTER_XT_TARGET_NFQUEUE`.
    pub fn queue_target(self, queue: u16, unserved: Unserved) -> Self {
        // struct xt_NFQ_info_v3: number, how many queues, NFQ_FLAG_BYPASS; filled up to eight bytes.
        let bypass = u16::from(unserved == Unserved::Passes);
        let info: Vec<u8> = [queue, 1, bypass, 0].iter().flat_map(|v: &u16| v.to_ne_bytes()).collect();
        self.expression("target", |m| {
            name(m, 1, "NFQUEUE");
            number(m, 2, 3);
            put(m, 3, &info);
        })
    }
}

/// What becomes of a packet for a queue that nobody serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unserved {
    /// It goes on.
    Passes,
    /// It is lost.
    Lost,
}

/// Where a base chain stands.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// [`INPUT`] or [`OUTPUT`].
    pub number: u32,
    /// Lower ones are asked first.
    pub priority: i32,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// [`OWNER`] and others.
    pub flags: u32,
    /// What `nft list` shows as its comment.
    pub comment: Option<String>,
}

/// A transaction under construction.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    messages: u32,
    /// Where the last message begins.
    last: usize,
}

impl Default for Batch {
    fn default() -> Self {
        let mut batch = Batch { bytes: Vec::new(), messages: 0, last: 0 };
        batch.message(BATCH_BEGIN, 0, (0, NFTABLES >> 8), |_| {});
        batch
    }
}

impl Batch {
    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn message(&mut self, kind: u16, flags: i32, (family, resource): (u8, u16), fill: impl FnOnce(&mut Vec<u8>)) {
        let at = self.bytes.len();
        self.messages += 1;
        self.last = at;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags as u16 | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&self.messages.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        fill(&mut self.bytes);
        let length = (self.bytes.len() - at) as u32;
        self.bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    fn add(&mut self, kind: u16, flags: i32, fill: impl FnOnce(&mut Vec<u8>)) {
        self.message(kind, flags, (INET, 0), fill);
    }

    /// A table that must not be there yet.
    pub fn table(&mut self, table: &Table) {
        self.add(NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |m| {
            name(m, 1, &table.name);
            number(m, 2, table.flags);
            if let Some(comment) = &table.comment {
                put(m, 6, &userdata(comment));
            }
        });
    }

    /// Takes a table away, with all that is in it.
    pub fn delete_table(&mut self, table: &str) {
        self.add(DELTABLE, 0, |m| name(m, 1, table));
    }

    /// A chain; with a hook it is asked about every packet there, and lets pass what it has no rule for.
    pub fn chain(&mut self, table: &str, chain: &str, hook: Option<Hook>) {
        self.add(NEWCHAIN, libc::NLM_F_CREATE, |m| {
            name(m, 1, table);
            name(m, 3, chain);
            if let Some(hook) = hook {
                nest(m, 4, |m| {
                    number(m, 1, hook.number);
                    number(m, 2, hook.priority as u32);
                });
                number(m, 5, ACCEPT as u32);
                name(m, 7, "filter");
            }
        });
    }

    /// A rule at the end of a chain.
    pub fn rule(&mut self, table: &str, chain: &str, rule: &Rule) {
        self.add(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |m| {
            name(m, 1, table);
            name(m, 2, chain);
            put(m, 4 | NESTED, &rule.0);
        });
    }

    /// Takes all rules of a chain away.
    pub fn flush_chain(&mut self, table: &str, chain: &str) {
        self.add(DELRULE, 0, |m| {
            name(m, 1, table);
            name(m, 2, chain);
        });
    }

    /// Takes all keys of a set away.
    pub fn empty(&mut self, table: &str, set: &str) {
        self.add(DELSETELEM, 0, |m| {
            name(m, 1, table);
            name(m, 2, set);
        });
    }

    /// A set of keys of `length` bytes; `kind` is how `nft list` shows them.
    pub fn set(&mut self, table: &str, set: &str, kind: u32, length: usize) {
        let id = self.messages;
        self.add(NEWSET, libc::NLM_F_CREATE, |m| {
            name(m, 1, table);
            name(m, 2, set);
            for (attribute, value) in [(3, 0), (4, kind), (5, length as u32), (10, id)] {
                number(m, attribute, value);
            }
        });
    }

    /// Puts keys into a set.
    pub fn elements(&mut self, table: &str, set: &str, keys: &[Vec<u8>]) {
        for keys in keys.chunks(ELEMENTS) {
            self.add(NEWSETELEM, libc::NLM_F_CREATE, |m| {
                name(m, 1, table);
                name(m, 2, set);
                // NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE.
                nest(m, 3, |m| {
                    for key in keys {
                        nest(m, 1, |m| {
                            nest(m, 1, |m| {
                                put(m, 1, key);
                            })
                        });
                    }
                });
            });
        }
    }

    /// Has the kernel do all of it.
    ///
    /// # Errors
    /// Then nothing was done. `EPERM` without `CAP_NET_ADMIN`, `ENOENT` or `EOPNOTSUPP` where the kernel lacks something.
    pub fn commit(mut self, socket: &Socket) -> io::Result<()> {
        if self.messages == 1 {
            return Ok(());
        }
        let (last, seq) = (self.last, self.messages);
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let asked = u16::from_ne_bytes([self.bytes[last + 6], self.bytes[last + 7]]);
        self.bytes[last + 6..last + 8].copy_from_slice(&(asked | flags).to_ne_bytes());
        self.message(BATCH_END, 0, (0, NFTABLES >> 8), |_| {});
        socket.transact(&self.bytes, seq)
    }
}

/// `NFTNL_UDATA_TABLE_COMMENT`: type, length, text with its zero byte.
fn userdata(comment: &str) -> Vec<u8> {
    let text: String = comment.chars().take(200).filter(char::is_ascii).collect();
    [&[0, text.len() as u8 + 1], text.as_bytes(), &[0]].concat()
}

fn comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let text = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned());
        }
        userdata = &rest[text.len()..];
    }
    None
}

/// All tables of the family `inet` in the socket's network namespace.
pub fn tables(socket: &Socket) -> io::Result<Vec<Table>> {
    let messages = match socket.dump(GETTABLE, &[INET, 0, 0, 0]) {
        // The kernel has no nftables.
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => return Ok(Vec::new()),
        messages => messages?,
    };
    Ok(messages.iter().filter_map(|m| table(m)).collect())
}

/// A message of [`tables`], after its `struct nlmsghdr`.
pub fn table(message: &[u8]) -> Option<Table> {
    let mut table = Table { name: String::new(), flags: 0, comment: None };
    for (kind, value) in attributes(message.get(HEAD - 16..)?) {
        match kind {
            1 => table.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned(),
            2 => table.flags = u32::from_be_bytes(value.try_into().ok()?),
            6 => table.comment = comment(value),
            _ => {}
        }
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_come_back() {
        assert_eq!(comment(&userdata("meio: image 12")).as_deref(), Some("meio: image 12"));
        assert_eq!(comment(&[1, 2, 9, 9, 0, 2, b'a', 0]).as_deref(), Some("a"));
        assert_eq!(comment(&[0, 200, b'a']), None);
        assert_eq!(comment(&userdata(&"x".repeat(500))).map(|c| c.len()), Some(200));
    }

    #[test]
    fn a_batch_is_whole_messages() {
        let mut batch = Batch::default();
        batch.table(&Table { name: "meio".into(), flags: OWNER, comment: None });
        batch.elements("meio", "set", &vec![vec![7; 20]; ELEMENTS + 1]);
        assert_eq!(batch.messages, 4);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < batch.bytes.len() {
            let length = u32::from_ne_bytes(batch.bytes[at..at + 4].try_into().expect("four")) as usize;
            kinds.push(u16::from_ne_bytes(batch.bytes[at + 4..at + 6].try_into().expect("two")));
            at += align(length);
        }
        assert_eq!((at, kinds), (batch.bytes.len(), vec![BATCH_BEGIN, NEWTABLE, NEWSETELEM, NEWSETELEM]));
    }
}
