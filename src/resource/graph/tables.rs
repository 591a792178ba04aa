//! What processes have besides descriptors and memory: namespaces, System V objects, filters of system calls.

use super::{Builder, Edge, How, Key};
use crate::resource::Tree;
use crate::resource::namespace::{Content, Namespace};
use std::collections::BTreeSet;

/// What tells one namespace from another, for people.
fn told(namespace: &Namespace) -> String {
    match &namespace.content {
        Content::Names { host, .. } => host.clone(),
        Content::Clocks { monotonic, .. } => format!("{} s", monotonic.0),
        Content::User { uids, .. } => {
            let map = |[inside, outside, count]: &[u32; 3]| format!("{inside} is {outside} outside ({count})");
            uids.first().map(map).unwrap_or_default()
        }
        Content::Roots(roots) => roots.first().map(|r| r.1.clone()).unwrap_or_default(),
        _ => String::new(),
    }
}

impl Builder<'_> {
    fn tie(&mut self, pids: impl IntoIterator<Item = i32>, to: Key, how: How) {
        self.edges.extend(pids.into_iter().map(|pid| Edge { from: Key::Process(pid), to, how }));
    }

    /// Everything of a tree that is here.
    pub(super) fn tables(&mut self, tree: &Tree) {
        for (n, namespace) in tree.namespaces.iter().enumerate() {
            let key = Key::Namespace(n as u32);
            self.add(key, "namespace", format!("{} namespace", namespace.kind.name()), told(namespace));
            let lives = tree.processes.iter().filter(|p| p.places.namespaces.contains(&(n as u32)));
            self.tie(lives.map(|p| p.pid), key, How::LivesIn);
        }
        let elsewhere = tree.system_v_elsewhere.iter().map(|e| &e.objects);
        let living: BTreeSet<i32> = tree.processes.iter().map(|p| p.pid).collect();
        let (mut sets, mut queues) = (0, 0);
        for objects in std::iter::once(&tree.system_v).chain(elsewhere) {
            for set in &objects.sets {
                let key = Key::Semaphores(sets);
                sets += 1;
                let detail = format!("{} semaphores", set.semaphores.len());
                self.add(key, "System V semaphores", format!("semaphore set {}", set.perm.id), detail);
                let undo = tree.processes.iter().filter(|p| p.undo.iter().any(|u| u.set == set.perm.id)).map(|p| p.pid);
                let acted = set.semaphores.iter().map(|s| s.1).filter(|pid| living.contains(pid));
                self.tie(undo.chain(acted), key, How::Uses);
            }
            for queue in &objects.queues {
                let key = Key::Messages(queues);
                queues += 1;
                let detail = format!("{} messages", queue.messages.len());
                self.add(key, "System V messages", format!("message queue {}", queue.perm.id), detail);
                self.tie([queue.lspid, queue.lrpid].into_iter().filter(|pid| living.contains(pid)), key, How::Uses);
            }
        }
        for (n, filter) in tree.filters.iter().enumerate() {
            let key = Key::Filter(n as u32);
            self.add(key, "seccomp", format!("seccomp filter {n}"), format!("{} instructions", filter.program.len() / 8));
            let under = tree.processes.iter().filter(|p| p.threads.iter().any(|t| t.seccomp.filters.contains(&(n as u32))));
            self.tie(under.map(|p| p.pid), key, How::Obeys);
        }
    }
}
