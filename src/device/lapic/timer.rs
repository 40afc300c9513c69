//! The APIC timer. SDM Vol. 3, "APIC Timer".

use crate::device::Nanos;
use crate::device::frequency::Frequency;

/// How the timer runs: bits 18:17 of its LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Run {
    /// Counts down once.
    OneShot,
    /// Counts down again and again.
    Periodic,
    /// Expires when the TSC reaches the deadline.
    TscDeadline,
}

/// The timer. The count starts with `first` at `start` and goes on with `initial` if it is periodic.
#[derive(Clone, Debug)]
pub struct Timer {
    clock: Frequency,
    run: Run,
    divide: u32,
    initial: u32,
    first: u32,
    start: Nanos,
    /// Is a count running?
    counting: bool,
    /// Expiries since `start` that are done with.
    expired: u64,
    deadline: Option<(u64, Nanos)>,
    /// When it expires next: asked for at each exit, changed seldom.
    next: Option<Nanos>,
}

impl Timer {
    /// A stopped timer.
    #[must_use]
    pub fn new(clock: Frequency) -> Self {
        Self {
            clock,
            run: Run::OneShot,
            divide: 0,
            initial: 0,
            first: 0,
            start: 0,
            counting: false,
            expired: 0,
            deadline: None,
            next: None,
        }
    }

    /// What it counts before the divider.
    #[must_use]
    pub fn clock(&self) -> Frequency {
        self.clock
    }

    /// Clocks for one count. SDM Vol. 3, "Divide Configuration Register": bits 3, 1, 0.
    fn divisor(&self) -> u64 {
        let code = self.divide >> 1 & 4 | self.divide & 3;
        if code == 7 { 1 } else { 2 << code }
    }

    fn elapsed(&self, now: Nanos) -> u64 {
        self.clock.ticks(now.saturating_sub(self.start)) / self.divisor()
    }

    /// When the timer expires for the `n`th time, counted from 1.
    fn expiry(&self, n: u64) -> Nanos {
        let counts = u128::from(self.first) + u128::from(n - 1) * u128::from(self.initial);
        let ticks = u64::try_from(counts * u128::from(self.divisor())).unwrap_or(u64::MAX);
        self.start.saturating_add(self.clock.time_of(ticks))
    }

    /// When it expires next.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Nanos> {
        self.next
    }

    fn plan(&mut self) {
        self.next = match self.run {
            Run::TscDeadline => self.deadline.map(|(_, at)| at),
            Run::OneShot | Run::Periodic => self.counting.then(|| self.expiry(self.expired + 1)),
        };
    }

    /// Has it expired since it was last asked? Expiries that were missed count as one.
    pub fn expire(&mut self, now: Nanos) -> bool {
        if self.next_expiry().is_none_or(|at| at > now) {
            return false;
        }
        match self.run {
            Run::TscDeadline => self.deadline = None,
            Run::OneShot => self.counting = false,
            Run::Periodic => {
                let after_first = self.elapsed(now).saturating_sub(u64::from(self.first));
                self.expired = 1 + after_first / u64::from(self.initial);
            }
        }
        self.plan();
        true
    }

    /// The current-count register.
    #[must_use]
    pub fn current(&self, now: Nanos) -> u32 {
        if !self.counting {
            return 0;
        }
        let (elapsed, first, initial) = (self.elapsed(now), u64::from(self.first), u64::from(self.initial));
        let count = match self.run {
            _ if elapsed < first => first - elapsed,
            Run::Periodic => initial - (elapsed - first) % initial,
            Run::OneShot | Run::TscDeadline => 0,
        };
        count as u32
    }

    /// The initial-count register.
    #[must_use]
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// A write to the initial-count register starts the count; 0 stops it.
    pub fn set_initial(&mut self, count: u32, now: Nanos) {
        if self.run == Run::TscDeadline {
            return; // "writes to the initial-count register are ignored"
        }
        self.initial = count;
        self.counting = count != 0;
        self.restart(count, now);
    }

    fn restart(&mut self, first: u32, now: Nanos) {
        self.first = first;
        self.start = now;
        self.expired = 0;
        self.plan();
    }

    /// The divide-configuration register.
    #[must_use]
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// A write to the divide-configuration register: the count goes on at the new rate.
    pub fn set_divide(&mut self, value: u32, now: Nanos) {
        let current = self.current(now);
        self.divide = value & 0xb;
        self.restart(current, now);
    }

    /// A new mode. Changing to or from TSC-deadline mode disarms the timer.
    pub fn set_run(&mut self, run: Run, now: Nanos) {
        if (run == Run::TscDeadline) != (self.run == Run::TscDeadline) {
            self.counting = false;
            self.deadline = None;
        } else if run != self.run {
            self.restart(self.current(now), now); // what is left of a count is counted
        }
        self.run = run;
        self.plan();
    }

    /// The deadline in TSC units, or 0.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.deadline.map_or(0, |(tsc, _)| tsc)
    }

    /// Arms the timer for the time `at`, at which the TSC is `tsc`; 0 disarms.
    pub fn set_deadline(&mut self, tsc: u64, at: Nanos) {
        if self.run == Run::TscDeadline {
            self.deadline = (tsc != 0).then_some((tsc, at));
            self.plan();
        }
    }
}
