//! What would be lost with the host that the tree runs on.

use super::{Role, State, Status};

fn ago(ms: f64) -> String {
    match ms {
        ..1000.0 => format!("{ms:.0} ms"),
        ..100_000.0 => format!("{:.1} s", ms / 1e3),
        _ => format!("{:.0} min", ms / 60_000.0),
    }
}

impl Status {
    /// What would be lost, in words.
    fn loss(&self) -> String {
        let age = self.age_ms.map(ago);
        let since = age.clone().map_or_else(|| "since it began".to_owned(), |age| format!("of the last {age}"));
        let from = age.map_or_else(String::new, |age| format!("; it goes on from {age} ago"));
        let hot = self.guarantee.as_deref() == Some("hot");
        match (self.role, self.state) {
            (Role::Series, State::Saved) => format!("what happened {since}; it goes on by hand: meio restore"),
            (_, State::Protected | State::Ready | State::TakingOver) if hot => {
                format!("what happened {since}, though clients were told; connections are broken off")
            }
            (Role::Primary, State::Protected) if self.is_short() => {
                let (ready, all) = (self.ready(), self.standbys.len());
                format!(
                    "nothing that clients were told, but {ready} of {all} standbys are ready, and nobody takes over before as many as have to are"
                )
            }
            (_, State::Protected | State::Ready | State::TakingOver) => format!("nothing that clients were told{from}"),
            (_, State::Cut) => "nothing that clients were told, if the standby lives; nobody answers until that is known".to_owned(),
            (_, State::Stopped) => "nothing: another host has taken over, and the tree stands still here".to_owned(),
            (_, State::LeftBehind) => "nobody knows here: its meio has ended".to_owned(),
            (_, State::Silent) => "nobody knows here: its meio does not answer".to_owned(),
            (Role::Series, _) => "everything: no image is complete yet".to_owned(),
            (_, State::Running) => "everything: it has taken over, and nobody stands by for it".to_owned(),
            (_, State::Paused) => "everything: it is paused, and nobody can take over".to_owned(),
            _ => "everything: nobody can take over".to_owned(),
        }
    }

    fn ready(&self) -> usize {
        self.standbys.iter().filter(|one| one.state == "ready").count()
    }

    /// Several stand by, and too few of them could choose one that takes over.
    fn is_short(&self) -> bool {
        self.needed.is_some_and(|needed| self.ready() < needed)
    }

    /// With what is lost in words.
    pub fn told(mut self) -> Status {
        self.loses = self.loss();
        self
    }
}
