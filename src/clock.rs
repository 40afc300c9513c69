//! The one clock of a machine: TSC, timers and devices all derive from it.

use std::time::{Duration, Instant};

const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// What drives the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Retired instructions, one nanosecond each, and idle time that is skipped: the same in every run.
    Virtual,
    /// The host's monotonic clock.
    Host,
}

/// What an idle machine does until its next event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Virtual time jumps; the host does not wait.
    Jump,
    /// The clock never gets ahead of the host's: somebody sits in front of it.
    Pace,
}

/// Nanoseconds since the machine started, and the TSC that runs with them.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    idle: Idle,
    started: Instant,
    now_ns: u64,
    tsc_per_ns_q32: u64,
}

impl Clock {
    /// A clock at zero, whose TSC runs at `tsc_khz`.
    pub fn new(source: Source, idle: Idle, tsc_khz: u64) -> Self {
        let ratio = (u128::from(tsc_khz) << 32) / u128::from(NS_PER_MS);
        let tsc_per_ns_q32 = u64::try_from(ratio).unwrap_or(u64::MAX).max(1);
        Self { source, idle, started: Instant::now(), now_ns: 0, tsc_per_ns_q32 }
    }

    /// What drives it.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Nanoseconds since the machine started.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// TSC ticks per nanosecond, times 2³².
    #[inline]
    pub fn tsc_per_ns_q32(&self) -> u64 {
        self.tsc_per_ns_q32
    }

    /// The processor's TSC, before any VMCS offsets it.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.tsc_at(self.now_ns)
    }

    /// The processor's TSC at a time.
    #[inline]
    pub fn tsc_at(&self, ns: u64) -> u64 {
        ((u128::from(ns) * u128::from(self.tsc_per_ns_q32)) >> 32) as u64
    }

    /// The first nanosecond at which the processor's TSC is at least `tsc`.
    pub fn ns_at_tsc(&self, tsc: u64) -> u64 {
        let ns = (u128::from(tsc) << 32).div_ceil(u128::from(self.tsc_per_ns_q32));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// The processor retired instructions.
    #[inline]
    pub fn retire(&mut self, instructions: u64) {
        self.now_ns += instructions;
        if self.source == Source::Host {
            self.catch_up();
        }
    }

    /// Under the host clock: follows the host, and never goes back behind what the guest may have seen.
    fn catch_up(&mut self) {
        self.now_ns = self.now_ns.max(self.elapsed_ns());
    }

    fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The machine is idle until `event_ns`: how long the host should wait for input first.
    /// `None` if it need not wait at all.
    pub fn wait(&self, event_ns: u64) -> Option<Duration> {
        if self.source == Source::Virtual && self.idle == Idle::Jump {
            return None;
        }
        let wait = event_ns.saturating_sub(self.elapsed_ns());
        (wait > 0).then(|| Duration::from_nanos(wait.min(NS_PER_SECOND)))
    }

    /// The machine was idle, and nothing happens before `event_ns`.
    pub fn skip_to(&mut self, event_ns: u64) {
        match (self.source, self.idle) {
            (Source::Virtual, Idle::Jump) => self.now_ns = self.now_ns.max(event_ns),
            (Source::Virtual, Idle::Pace) => {
                self.now_ns = self.now_ns.max(event_ns.min(self.elapsed_ns()));
            }
            (Source::Host, _) => self.catch_up(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instruction_is_one_nanosecond_and_the_tsc_runs_at_its_nominal_frequency() {
        let mut clock = Clock::new(Source::Virtual, Idle::Jump, 2_000_000);
        clock.retire(1_000);
        assert_eq!((clock.now_ns(), clock.tsc()), (1_000, 2_000));
    }

    #[test]
    fn a_deadline_is_reached_at_the_first_nanosecond_that_shows_it() {
        for khz in [1_000_000, 2_000_000, 2_394_364, 3_699_999] {
            let clock = Clock::new(Source::Virtual, Idle::Jump, khz);
            for tsc in [0, 1, 2, 3, 1_000_003, 0x1234_5678_9abc] {
                let ns = clock.ns_at_tsc(tsc);
                assert!(clock.tsc_at(ns) >= tsc);
                assert!(ns == 0 || clock.tsc_at(ns - 1) < tsc);
            }
        }
    }

    #[test]
    fn a_deadline_that_never_comes_does_not_overflow() {
        let clock = Clock::new(Source::Virtual, Idle::Jump, 1);
        assert_eq!(clock.ns_at_tsc(u64::MAX), u64::MAX);
    }

    #[test]
    fn idle_time_is_jumped_over_and_never_goes_back() {
        let mut clock = Clock::new(Source::Virtual, Idle::Jump, 2_000_000);
        assert_eq!(clock.wait(u64::MAX), None);
        clock.skip_to(5_000);
        clock.skip_to(4_000);
        assert_eq!(clock.now_ns(), 5_000);
    }

    #[test]
    fn a_paced_clock_waits_for_the_host() {
        let mut clock = Clock::new(Source::Virtual, Idle::Pace, 2_000_000);
        assert!(clock.wait(NS_PER_SECOND * 3600).is_some());
        clock.skip_to(NS_PER_SECOND * 3600);
        assert!(clock.now_ns() < NS_PER_SECOND * 3600);
    }
}
