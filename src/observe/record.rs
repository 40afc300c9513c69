//! When a guest reached what: wall time and retired instructions at the arrival of its marker lines.

use std::time::Instant;

use super::marker::Marker;
use crate::config::Retired;

/// The most milestones and loops kept: a guest may print as many as it likes.
const KEPT: usize = 256;

/// A moment of a run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stamp {
    /// Seconds since the run began.
    pub wall_s: f64,
    /// Instructions retired since then, all levels together.
    pub instructions: u64,
}

/// A loop of `testudo micro`, from its first line to its last.
#[derive(Clone, PartialEq, Debug)]
pub struct TimedLoop {
    /// Its name.
    pub name: String,
    /// Its turns: one exit each.
    pub turns: u64,
    /// How long it took.
    pub wall_s: f64,
    /// How many instructions it took.
    pub instructions: u64,
}

/// What the console has said so far.
#[derive(Debug)]
pub struct Record {
    began: Instant,
    retired: Retired,
    milestones: Vec<(String, Stamp)>,
    open_loop: Option<(String, u64, Stamp)>,
    loops: Vec<TimedLoop>,
    failure: Option<String>,
}

impl Record {
    /// A record of a run that begins now.
    #[must_use]
    pub fn new(retired: Retired) -> Self {
        let began = Instant::now();
        Self { began, retired, milestones: Vec::new(), open_loop: None, loops: Vec::new(), failure: None }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Stamp {
        Stamp { wall_s: self.began.elapsed().as_secs_f64(), instructions: self.retired.read() }
    }

    /// Notes that `marker` arrives now. A milestone is reached once.
    pub fn note(&mut self, marker: Marker) {
        let now = self.now();
        match marker {
            Marker::Milestone(name) => {
                if self.milestones.len() < KEPT && self.milestone(&name).is_none() {
                    self.milestones.push((name, now));
                }
            }
            Marker::LoopBegins(name, turns) => self.open_loop = Some((name, turns, now)),
            Marker::LoopEnds(name, turns) => self.end_loop(&name, turns, now),
            Marker::Failure(text) => self.failure = self.failure.take().or(Some(text)),
        }
    }

    fn end_loop(&mut self, name: &str, turns: u64, now: Stamp) {
        let Some((name, turns, begin)) =
            self.open_loop.take().filter(|open| (&*open.0, open.1) == (name, turns))
        else {
            return;
        };
        if self.loops.len() < KEPT && turns != 0 {
            let instructions = now.instructions - begin.instructions;
            self.loops.push(TimedLoop { name, turns, wall_s: now.wall_s - begin.wall_s, instructions });
        }
    }

    /// When `name` was reached.
    #[must_use]
    pub fn milestone(&self, name: &str) -> Option<Stamp> {
        self.milestones.iter().find(|(known, _)| known == name).map(|&(_, stamp)| stamp)
    }
    /// All milestones, in the order in which they were reached.
    #[must_use]
    pub fn milestones(&self) -> &[(String, Stamp)] {
        &self.milestones
    }
    /// The loops that have ended.
    #[must_use]
    pub fn loops(&self) -> &[TimedLoop] {
        &self.loops
    }
    /// What the guest gave as the reason for giving up.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_carry_the_published_count() {
        let retired = Retired::default();
        let mut record = Record::new(retired.clone());
        retired.publish(500);
        record.note(Marker::Milestone("l1_userspace".into()));
        retired.publish(900);
        record.note(Marker::Milestone("l1_userspace".into()));
        assert_eq!(record.milestone("l1_userspace").unwrap().instructions, 500, "reached once");
        assert_eq!(record.milestone("end"), None);
    }

    #[test]
    fn a_loop_counts_between_its_lines() {
        let retired = Retired::default();
        let mut record = Record::new(retired.clone());
        retired.publish(1_000);
        record.note(Marker::LoopBegins("cpuid".into(), 10));
        retired.publish(11_000);
        record.note(Marker::LoopEnds("hlt".into(), 10));
        assert_eq!(record.loops(), [], "the end of another loop ends none");
        record.note(Marker::LoopBegins("cpuid".into(), 10));
        retired.publish(21_000);
        record.note(Marker::LoopEnds("cpuid".into(), 10));
        assert_eq!(record.loops()[0].instructions, 10_000);
    }

    #[test]
    fn a_guest_cannot_fill_memory_with_milestones() {
        let mut record = Record::new(Retired::default());
        for n in 0..10 * KEPT {
            record.note(Marker::Milestone(format!("m{n}")));
        }
        assert_eq!(record.milestones().len(), KEPT);
    }
}
