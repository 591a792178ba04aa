# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_meio_global_optspecs
    string join \n v/verbose q/quiet json color= h/help V/version
end

function __fish_meio_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_meio_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_meio_using_subcommand
    set -l cmd (__fish_meio_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c meio -n "__fish_meio_needs_command" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_needs_command" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_needs_command" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_needs_command" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_needs_command" -s V -l version -d 'Print version'
complete -c meio -n "__fish_meio_needs_command" -f -a "dump" -d 'Save a running tree of processes to an image'
complete -c meio -n "__fish_meio_needs_command" -f -a "restore" -d 'Bring the tree of an image back'
complete -c meio -n "__fish_meio_needs_command" -f -a "run" -d 'Start a program in a capsule, with pids and IPC of its own'
complete -c meio -n "__fish_meio_needs_command" -f -a "list" -d 'List the capsules that live'
complete -c meio -n "__fish_meio_needs_command" -f -a "check" -d 'Say what this machine allows, what each gap costs, and how to mend it'
complete -c meio -n "__fish_meio_needs_command" -f -a "inspect" -d 'Show what is in an image, without running it'
complete -c meio -n "__fish_meio_needs_command" -f -a "graph" -d 'Show processes and what they hold, and who needs whom'
complete -c meio -n "__fish_meio_needs_command" -f -a "verify" -d 'Read an image to its end and check everything in it'
complete -c meio -n "__fish_meio_needs_command" -f -a "merge" -d 'Make one image that stands alone of an image and those that it builds upon'
complete -c meio -n "__fish_meio_needs_command" -f -a "migrate" -d 'Move a running tree of processes to another machine'
complete -c meio -n "__fish_meio_needs_command" -f -a "watch" -d 'Keep a tree of processes alive across the loss of its host'
complete -c meio -n "__fish_meio_needs_command" -f -a "status" -d 'Show how the watches of this host stand'
complete -c meio -n "__fish_meio_needs_command" -f -a "history" -d 'Tell what has become of a watch on this host'
complete -c meio -n "__fish_meio_needs_command" -f -a "checkpoint" -d 'Have an epoch begin now, and wait until the standby has it as a whole'
complete -c meio -n "__fish_meio_needs_command" -f -a "switchover" -d 'Have the standby take over now, without any loss'
complete -c meio -n "__fish_meio_needs_command" -f -a "add-standby" -d 'Have one more host stand by for a watched tree'
complete -c meio -n "__fish_meio_needs_command" -f -a "remove-standby" -d 'Have one host less stand by for a watched tree'
complete -c meio -n "__fish_meio_needs_command" -f -a "drain" -d 'Have everything that is protected on a host, or runs there in capsules, go to other hosts'
complete -c meio -n "__fish_meio_needs_command" -f -a "pause" -d 'Have a watched tree unprotected for a while'
complete -c meio -n "__fish_meio_needs_command" -f -a "resume" -d 'Have a watched tree protected again that was paused'
complete -c meio -n "__fish_meio_needs_command" -f -a "unwatch" -d 'End a watch'
complete -c meio -n "__fish_meio_needs_command" -f -a "witness" -d 'Say which host may go on, for watches of other hosts'
complete -c meio -n "__fish_meio_needs_command" -f -a "core" -d 'Write an ELF core file for each process of an image'
complete -c meio -n "__fish_meio_needs_command" -f -a "demo" -d 'See it work: a program is saved, killed and brought back, moved between machines, or outlives its machine'
complete -c meio -n "__fish_meio_using_subcommand dump" -s o -l output -d 'Where the image goes; - is standard output [default: <comm>-<pid>.meio in the current folder]' -r -F
complete -c meio -n "__fish_meio_using_subcommand dump" -l compress -d 'How memory is packed: none (fastest), or a zstd level from 1 (fast) to 19 (small)' -r
complete -c meio -n "__fish_meio_using_subcommand dump" -l freeze-timeout -d 'How long to wait for every task to stand still, such as 5s or 500ms' -r
complete -c meio -n "__fish_meio_using_subcommand dump" -l parent -d 'Build upon this image of the same tree: what is as there is named, not stored' -r -F
complete -c meio -n "__fish_meio_using_subcommand dump" -l max-pause -d 'How long the last stop may become, as far as that can be foreseen [default: 20ms]' -r
complete -c meio -n "__fish_meio_using_subcommand dump" -l every -d 'Make a series of images, one after each such time, such as 10s: each of what has changed since the one before' -r
complete -c meio -n "__fish_meio_using_subcommand dump" -l count -d 'How many images a series has [default: until the tree ends]' -r
complete -c meio -n "__fish_meio_using_subcommand dump" -l track -d 'How written pages are told, with --live and --every' -r -f -a "auto\t'The first of the others that works here'
uffd\t'Write protection by userfaultfd (Linux 6.7)'
soft-dirty\t'Soft-dirty bits of the page table'
hash\t'Hashes of all pages: works everywhere, and reads all memory each time'"
complete -c meio -n "__fish_meio_using_subcommand dump" -l external -d 'Keep it by name only; its other side lives outside, and is looked for again at the restore' -r
complete -c meio -n "__fish_meio_using_subcommand dump" -l ignore -d 'Leave it out of the image; a descriptor comes back as one of /dev/null' -r
complete -c meio -n "__fish_meio_using_subcommand dump" -l tcp -d 'What becomes of TCP connections with somebody outside of the tree' -r -f -a "keep\t'They go on where they were'
close\t'They come back broken off, and the program finds ECONNRESET; with --kill the other ends see the program end'
refuse\t'A tree that has such is refused'"
complete -c meio -n "__fish_meio_using_subcommand dump" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand dump" -l kill -d 'End the tree once the image is safely in place'
complete -c meio -n "__fish_meio_using_subcommand dump" -l live -d 'Copy memory while the tree runs, round after round, and stop it only for what is left'
complete -c meio -n "__fish_meio_using_subcommand dump" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand dump" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand dump" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand dump" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand restore" -l pidfile -d 'Write the pid of the root to this file' -r -F
complete -c meio -n "__fish_meio_using_subcommand restore" -l tcp -d 'What becomes of TCP connections with somebody outside of the tree, where the dump has kept them' -r -f -a "keep\t'They are as the image has them'
close\t'They come back broken off, and the program finds ECONNRESET; the other ends are told so'"
complete -c meio -n "__fish_meio_using_subcommand restore" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand restore" -s d -l detach -d 'Return as soon as the tree runs, and print the pid of its root'
complete -c meio -n "__fish_meio_using_subcommand restore" -l pid-namespace -d 'Restore into a fresh pid namespace: the same numbers inside, whatever runs outside'
complete -c meio -n "__fish_meio_using_subcommand restore" -l lazy -d 'Let the tree run at once; its memory comes from the image when it is touched, and in the background'
complete -c meio -n "__fish_meio_using_subcommand restore" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand restore" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand restore" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand run" -l name -d 'Name of the capsule [default: the name of the program]' -r
complete -c meio -n "__fish_meio_using_subcommand run" -l net -d 'Network: the host\'s, none but a loop-back interface, or eth0 with an address, as a port of a bridge of the host' -r
complete -c meio -n "__fish_meio_using_subcommand run" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand run" -s d -l detach -d 'Return as soon as the program runs, and print the name of the capsule'
complete -c meio -n "__fish_meio_using_subcommand run" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand run" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand run" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand list" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand list" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand list" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand list" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand check" -l pid -d 'Look through the tree below this process, or through this capsule, too' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l external -d 'Keep it by name only; its other side lives outside, and is looked for again at the restore' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l ignore -d 'Leave it out of the image; a descriptor comes back as one of /dev/null' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l tcp -d 'What becomes of TCP connections with somebody outside of the tree' -r -f -a "keep\t'They go on where they were'
close\t'They come back broken off, and the program finds ECONNRESET; with --kill the other ends see the program end'
refuse\t'A tree that has such is refused'"
complete -c meio -n "__fish_meio_using_subcommand check" -l unlock -d 'Open the network lock that a dump has kept for the image with this id, or all of them' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l host -d 'Log in to this machine, and say what is there and what it allows; with --pid, whether that tree could move there' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l speed -d 'With --host: send it so much, such as 1G, over the streams that a move uses, and say how fast they are' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l ssh -d 'Log in with this command instead of meio\'s own client, such as \'ssh -J bastion\'' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l identity -d 'Private key to log in with [default: those of the agent, then ~/.ssh/id_*]' -r -F
complete -c meio -n "__fish_meio_using_subcommand check" -l known-hosts -d 'Keys of known hosts [default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts]' -r -F
complete -c meio -n "__fish_meio_using_subcommand check" -l remote-path -d 'The meio of the other machine' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l streams -d 'How many streams carry memory' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l direct -d 'Whether these are encrypted connections of their own, where the other machine can be reached, or go through SSH' -r -f -a "auto\t'Connections of their own, else through SSH'
never\t'Through SSH'"
complete -c meio -n "__fish_meio_using_subcommand check" -l bandwidth -d 'How many bytes a second may be sent, such as 50M' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l connect-timeout -d 'How long the other machine may take to answer at first' -r
complete -c meio -n "__fish_meio_using_subcommand check" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand check" -l kinds -d 'List the kinds of kernel object, and whether meio keeps them'
complete -c meio -n "__fish_meio_using_subcommand check" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand check" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand check" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand inspect" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand inspect" -l tree -d 'Parents, children and threads'
complete -c meio -n "__fish_meio_using_subcommand inspect" -l maps -d 'The mappings of every process'
complete -c meio -n "__fish_meio_using_subcommand inspect" -l fds -d 'The descriptors of every process'
complete -c meio -n "__fish_meio_using_subcommand inspect" -l stacks -d 'The call stack of every thread, with symbols where the mapped files are still the same'
complete -c meio -n "__fish_meio_using_subcommand inspect" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand inspect" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand inspect" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand graph" -l format -d 'How it is written [default: by the name of FILE, else dot]' -r -f -a "dot\t'For Graphviz'
json\t'One JSON object'
svg\t'A picture'"
complete -c meio -n "__fish_meio_using_subcommand graph" -s o -l output -d 'Write it to this file instead of standard output' -r -F
complete -c meio -n "__fish_meio_using_subcommand graph" -l why -d 'Say how the root leads to this, who holds it, what it needs, and why it would be refused' -r
complete -c meio -n "__fish_meio_using_subcommand graph" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand graph" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand graph" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand graph" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand graph" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand verify" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand verify" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand verify" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand verify" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand merge" -s o -l output -d 'Where the new image goes; - is standard output' -r -F
complete -c meio -n "__fish_meio_using_subcommand merge" -l compress -d 'How memory is packed: none (fastest), or a zstd level from 1 (fast) to 19 (small)' -r
complete -c meio -n "__fish_meio_using_subcommand merge" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand merge" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand merge" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand merge" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand merge" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand migrate" -l max-downtime -d 'How long nobody may run, as far as that can be foreseen' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l timeout -d 'How long memory may be copied while the tree runs' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l on-timeout -d 'What to do when the tree writes faster than that can be sent, or the time is over' -r -f -a "cancel\t'It stays'
force\t'It is moved, however long that takes'
lazy\t'It runs there first, and what is left follows: as with --lazy'"
complete -c meio -n "__fish_meio_using_subcommand migrate" -l vip -d 'An address that moves with the tree: taken from the interface here, and brought up there' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l compress -d 'How memory is packed: none, or a zstd level from 1 (fast) to 19 (small)' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l spool -d 'Where images are kept at the target until they are not needed any more' -r -F
complete -c meio -n "__fish_meio_using_subcommand migrate" -l copy-files -d 'Send files that the tree has open or mapped, and its current directories, where they are not there' -r -f -a "missing\t'Those that are not there'
written\t'Those, and in place of what is there those that the tree has open for writing'"
complete -c meio -n "__fish_meio_using_subcommand migrate" -l with-data -d 'Keep this folder in step until the switch: what is in it there becomes what is in it here, and all else there is deleted' -r -f -a "(__fish_complete_directories)"
complete -c meio -n "__fish_meio_using_subcommand migrate" -l shared-files -d 'Files in this folder are the same ones there, although that cannot be seen: neither compared nor sent' -r -f -a "(__fish_complete_directories)"
complete -c meio -n "__fish_meio_using_subcommand migrate" -l freeze-timeout -d 'How long to wait for every task to stand still' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l resume -d 'Take up a move that ended without knowing where the tree runs: its name is in what was said then' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l abort -d 'Have the tree of such a move here, unless it runs there' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l ssh -d 'Log in with this command instead of meio\'s own client, such as \'ssh -J bastion\'' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l identity -d 'Private key to log in with [default: those of the agent, then ~/.ssh/id_*]' -r -F
complete -c meio -n "__fish_meio_using_subcommand migrate" -l known-hosts -d 'Keys of known hosts [default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts]' -r -F
complete -c meio -n "__fish_meio_using_subcommand migrate" -l remote-path -d 'The meio of the other machine' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l streams -d 'How many streams carry memory' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l direct -d 'Whether these are encrypted connections of their own, where the other machine can be reached, or go through SSH' -r -f -a "auto\t'Connections of their own, else through SSH'
never\t'Through SSH'"
complete -c meio -n "__fish_meio_using_subcommand migrate" -l bandwidth -d 'How many bytes a second may be sent, such as 50M' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l connect-timeout -d 'How long the other machine may take to answer at first' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l external -d 'Keep it by name only; its other side lives outside, and is looked for again at the restore' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l ignore -d 'Leave it out of the image; a descriptor comes back as one of /dev/null' -r
complete -c meio -n "__fish_meio_using_subcommand migrate" -l tcp -d 'What becomes of TCP connections with somebody outside of the tree' -r -f -a "keep\t'They go on where they were'
close\t'They come back broken off, and the program finds ECONNRESET; with --kill the other ends see the program end'
refuse\t'A tree that has such is refused'"
complete -c meio -n "__fish_meio_using_subcommand migrate" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand migrate" -l dry-run -d 'Only look whether it could be moved, at both ends'
complete -c meio -n "__fish_meio_using_subcommand migrate" -l lazy -d 'Let it run there first; its memory follows, what it touches first of all. Should the link be lost meanwhile, it is ended there, and stands still here as it was when it was moved'
complete -c meio -n "__fish_meio_using_subcommand migrate" -l pid-namespace -d 'Let it have its pids in a fresh pid namespace there'
complete -c meio -n "__fish_meio_using_subcommand migrate" -l force -d 'With --abort: the target is gone for good, and need not be asked'
complete -c meio -n "__fish_meio_using_subcommand migrate" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand migrate" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand migrate" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand migrate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand watch" -l standby -d 'Where it goes on if this host is lost; more than once for several hosts, the earlier ones preferred' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l ack -d 'How many of several standbys must have what is let out' -r -f -a "1\t'One; then all of them must be there for one to take over'
majority\t'So many that they are more than half of the hosts together with this one'
all\t'All that are in step, and never fewer than with majority'"
complete -c meio -n "__fish_meio_using_subcommand watch" -l dir -d 'Keep images of it in this folder instead' -r -f -a "(__fish_complete_directories)"
complete -c meio -n "__fish_meio_using_subcommand watch" -l keep -d 'How many images are kept at least, with --dir' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l name -d 'What the watch is called [default: the capsule\'s name, or the pid]' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l guarantee -d 'What clients may rely on' -r -f -a "hold\t'What they were told is never taken back: what leaves the addresses waits until the standby has all that it came of'
hot\t'Somebody answers: what clients were told since the last epoch may be forgotten'"
complete -c meio -n "__fish_meio_using_subcommand watch" -l vip -d 'An address that goes with the tree' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l interval -d 'Time between the beginnings of two epochs [default: 50ms; with --dir 10s]' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l interval-max -d 'The same, where the link does not carry more or the tree does hardly anything' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l timeout -d 'After this silence on both paths the other host is taken for lost' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l on-standby-loss -d 'What to do here when nothing is heard of the standby, and it is not known whether it takes over' -r -f -a "hold\t'Nobody answers here until that is known'
continue\t'It goes on, at the risk that two answer'"
complete -c meio -n "__fish_meio_using_subcommand watch" -l fence -d 'A shell command that ends the other host, MEIO_HOST, and fails if it cannot: must succeed before a standby takes over, or, with one standby, this host goes on alone' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l witness -d 'A host besides these, where meio witness runs, that says which of them may go on; port of its own [default: 26346]' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l witness-key -d 'The key that the witness knows it by, as meio witness --add prints it there [default: asked for by SSH]' -r -F
complete -c meio -n "__fish_meio_using_subcommand watch" -l on-event -d 'A shell command that is told of each thing that meio history tells of, when it happens, on the host where it does' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l control-group -d 'The group whose members may ask how it stands, and command it [default: meio, if there is one]' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l compress -d 'How memory is packed: none, or a zstd level from 1 (fast) to 19 (small)' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l spool -d 'Where the standby keeps its copy, in place of memory' -r -F
complete -c meio -n "__fish_meio_using_subcommand watch" -l freeze-timeout -d 'How long to wait for every task to stand still' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l config -d 'Take options from this file, too [default: /etc/meio/NAME.toml, if it is there, with --name NAME]' -r -F
complete -c meio -n "__fish_meio_using_subcommand watch" -l ssh -d 'Log in with this command instead of meio\'s own client, such as \'ssh -J bastion\'' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l identity -d 'Private key to log in with [default: those of the agent, then ~/.ssh/id_*]' -r -F
complete -c meio -n "__fish_meio_using_subcommand watch" -l known-hosts -d 'Keys of known hosts [default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts]' -r -F
complete -c meio -n "__fish_meio_using_subcommand watch" -l remote-path -d 'The meio of the other machine' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l streams -d 'How many streams carry memory' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l direct -d 'Whether these are encrypted connections of their own, where the other machine can be reached, or go through SSH' -r -f -a "auto\t'Connections of their own, else through SSH'
never\t'Through SSH'"
complete -c meio -n "__fish_meio_using_subcommand watch" -l bandwidth -d 'How many bytes a second may be sent, such as 50M' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l connect-timeout -d 'How long the other machine may take to answer at first' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l external -d 'Keep it by name only; its other side lives outside, and is looked for again at the restore' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l ignore -d 'Leave it out of the image; a descriptor comes back as one of /dev/null' -r
complete -c meio -n "__fish_meio_using_subcommand watch" -l tcp -d 'What becomes of TCP connections with somebody outside of the tree' -r -f -a "keep\t'They go on where they were'
close\t'They come back broken off, and the program finds ECONNRESET; with --kill the other ends see the program end'
refuse\t'A tree that has such is refused'"
complete -c meio -n "__fish_meio_using_subcommand watch" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand watch" -l keep-demoted -d 'Leave the tree standing still here when the standby has taken over, in place of ending it'
complete -c meio -n "__fish_meio_using_subcommand watch" -l pid-namespace -d 'Let it have its pids in a fresh pid namespace there'
complete -c meio -n "__fish_meio_using_subcommand watch" -l check-config -d 'Only look whether that file, with the command line, is fine: all that is wrong is said at once'
complete -c meio -n "__fish_meio_using_subcommand watch" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand watch" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand watch" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand watch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand status" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand status" -l watch -d 'Show it again each second, until ^C'
complete -c meio -n "__fish_meio_using_subcommand status" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand status" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand status" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand history" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand history" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand history" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand history" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand history" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand checkpoint" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand checkpoint" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand checkpoint" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand checkpoint" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand checkpoint" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand switchover" -l to -d 'The host that is to take over: nothing is done if it does not stand by; to be named where several do' -r
complete -c meio -n "__fish_meio_using_subcommand switchover" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand switchover" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand switchover" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand switchover" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand switchover" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand add-standby" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand add-standby" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand add-standby" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand add-standby" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand add-standby" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand remove-standby" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand remove-standby" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand remove-standby" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand remove-standby" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand remove-standby" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand drain" -l to -d 'Where capsules may go; may be given more than once [default: hosts that stand by for what is watched there]' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l copy-files -d 'Send files that capsules have open or mapped, and their current directories, where they are not there' -r -f -a "missing\t'Those that are not there'
written\t'Those, and in place of what is there those that the tree has open for writing'"
complete -c meio -n "__fish_meio_using_subcommand drain" -l shared-files -d 'Files in this folder are the same ones there, although that cannot be seen: neither compared nor sent' -r -f -a "(__fish_complete_directories)"
complete -c meio -n "__fish_meio_using_subcommand drain" -l ssh -d 'Log in with this command instead of meio\'s own client, such as \'ssh -J bastion\'' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l identity -d 'Private key to log in with [default: those of the agent, then ~/.ssh/id_*]' -r -F
complete -c meio -n "__fish_meio_using_subcommand drain" -l known-hosts -d 'Keys of known hosts [default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts]' -r -F
complete -c meio -n "__fish_meio_using_subcommand drain" -l remote-path -d 'The meio of the other machine' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l streams -d 'How many streams carry memory' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l direct -d 'Whether these are encrypted connections of their own, where the other machine can be reached, or go through SSH' -r -f -a "auto\t'Connections of their own, else through SSH'
never\t'Through SSH'"
complete -c meio -n "__fish_meio_using_subcommand drain" -l bandwidth -d 'How many bytes a second may be sent, such as 50M' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l connect-timeout -d 'How long the other machine may take to answer at first' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l external -d 'Keep it by name only; its other side lives outside, and is looked for again at the restore' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l ignore -d 'Leave it out of the image; a descriptor comes back as one of /dev/null' -r
complete -c meio -n "__fish_meio_using_subcommand drain" -l tcp -d 'What becomes of TCP connections with somebody outside of the tree' -r -f -a "keep\t'They go on where they were'
close\t'They come back broken off, and the program finds ECONNRESET; with --kill the other ends see the program end'
refuse\t'A tree that has such is refused'"
complete -c meio -n "__fish_meio_using_subcommand drain" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand drain" -l dry-run -d 'Only say what would go where, and what would stay'
complete -c meio -n "__fish_meio_using_subcommand drain" -l attended -d 'Another meio has started this one from elsewhere: what comes to standard input, or its end, has it begin nothing more'
complete -c meio -n "__fish_meio_using_subcommand drain" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand drain" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand drain" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand pause" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand pause" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand pause" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand pause" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand pause" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand resume" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand resume" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand resume" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand resume" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand resume" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand unwatch" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand unwatch" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand unwatch" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand unwatch" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand unwatch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand witness" -l listen -d 'Where to listen [default: port 26346 of all addresses]' -r
complete -c meio -n "__fish_meio_using_subcommand witness" -l dir -d 'Where it keeps keys and generations' -r -f -a "(__fish_complete_directories)"
complete -c meio -n "__fish_meio_using_subcommand witness" -l add -d 'Make a key for a service, if there is none, and print it; a witness that is at work takes notice' -r
complete -c meio -n "__fish_meio_using_subcommand witness" -l remove -d 'Take the key of a service away: who has it is not answered any more' -r
complete -c meio -n "__fish_meio_using_subcommand witness" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand witness" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand witness" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand witness" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand witness" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand core" -s o -l output -d 'The folder that gets the core files; made when it is missing' -r -f -a "(__fish_complete_directories)"
complete -c meio -n "__fish_meio_using_subcommand core" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand core" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand core" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand core" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand core" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c meio -n "__fish_meio_using_subcommand demo" -l role -r -f -a "stage\t'Shows everything, in namespaces of its own: FOLDER'
door\t'Stands in for sshd: SOCKET ADDRESS'
ring\t'Stands in for ssh: SOCKET HOST COMMAND'"
complete -c meio -n "__fish_meio_using_subcommand demo" -l color -d 'When to colour; auto means on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c meio -n "__fish_meio_using_subcommand demo" -s v -l verbose -d 'Say more: each phase with its time, and notes'
complete -c meio -n "__fish_meio_using_subcommand demo" -s q -l quiet -d 'Say less: no progress; results, warnings and errors only'
complete -c meio -n "__fish_meio_using_subcommand demo" -l json -d 'Write one JSON object a line to standard output'
complete -c meio -n "__fish_meio_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
