//! Conversion between virtual time and a device's clock, exact in both directions.

use super::Nanos;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A clock that started with the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frequency(u64);

impl Frequency {
    /// A clock of `hertz` per second; 0 counts as 1.
    #[must_use]
    pub const fn new(hertz: u64) -> Self {
        Self(if hertz == 0 { 1 } else { hertz })
    }

    /// The clocks per second.
    #[must_use]
    pub const fn hertz(self) -> u64 {
        self.0
    }

    /// The number of clocks that have passed at `time`.
    #[must_use]
    pub fn ticks(self, time: Nanos) -> u64 {
        saturate(u128::from(time) * u128::from(self.0) / NANOS_PER_SECOND)
    }

    /// The first time at which `ticks` clocks have passed.
    #[must_use]
    pub fn time_of(self, ticks: u64) -> Nanos {
        saturate((u128::from(ticks) * NANOS_PER_SECOND).div_ceil(u128::from(self.0)))
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_reached_at_its_time_and_not_before() {
        for hertz in [1_193_182, 3_579_545, 25_000_000, 100_000_000, 32_768] {
            let clock = Frequency::new(hertz);
            for tick in [1, 2, 3, 1000, 65_535, 1 << 32, (1 << 40) + 7] {
                let time = clock.time_of(tick);
                assert_eq!(clock.ticks(time), tick);
                assert_eq!(clock.ticks(time - 1), tick - 1);
            }
        }
    }

    #[test]
    fn extremes_saturate() {
        assert_eq!(Frequency::new(0).hertz(), 1);
        assert_eq!(Frequency::new(1).time_of(u64::MAX), u64::MAX);
        assert_eq!(Frequency::new(u64::MAX).ticks(u64::MAX), u64::MAX);
    }
}
