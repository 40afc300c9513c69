//! ACPI fixed hardware: power-management timer, PM1 event and control blocks, reset register.
//! ACPI Specification, "ACPI Hardware Specification".

use super::frequency::Frequency;
use super::{Nanos, Request};

/// Where the block is: PM1 status at +0, PM1 enable at +2, PM1 control at +4, the timer at +8.
pub const BASE: u16 = 0x600;
/// Bytes of the block.
pub const SIZE: u16 = 12;
/// Offset of PM1_CNT.
pub const CONTROL: u16 = 4;
/// Offset of PM_TMR.
pub const TIMER: u16 = 8;
/// The timer's frequency.
pub const CLOCK: Frequency = Frequency::new(3_579_545);
/// SLP_TYP of soft off, as \_S5 in the DSDT says.
pub const SOFT_OFF: u8 = 5;
/// The reset control register, and the value that resets.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write there.
pub const RESET_VALUE: u8 = 0x06;

/// TMR_STS and TMR_EN.
const TIMER_CARRY: u16 = 1 << 0;
/// Enable bits that exist: timer, global lock, power button, sleep button, RTC.
const ENABLES: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10;
/// SCI_EN: always in ACPI mode.
const SCI_ENABLED: u16 = 1 << 0;
/// BM_RLD and SLP_TYP keep their value.
const CONTROL_WRITABLE: u16 = 1 << 1 | 7 << 10;
const SLEEP_ENABLE: u16 = 1 << 13;

const SYSTEM_RESET: u8 = 1 << 1;
const RESET_PROCESSOR: u8 = 1 << 2;

/// The timer is 32 bits wide; its status bit is set when the most significant bit changes.
const HALF_RANGE: u64 = 1 << 31;

/// The fixed hardware.
#[derive(Clone, Debug, Default)]
pub struct Pm {
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
    /// Changes of the timer's top bit that TMR_STS has shown.
    carries: u64,
}

impl Pm {
    /// The timer's value.
    #[must_use]
    pub fn timer(now: Nanos) -> u32 {
        CLOCK.ticks(now) as u32
    }

    fn see(&mut self, now: Nanos) {
        let carries = CLOCK.ticks(now) / HALF_RANGE;
        if carries > self.carries {
            self.carries = carries;
            self.status |= TIMER_CARRY;
        }
    }

    /// Reads a byte of the block.
    pub fn read(&mut self, offset: u16, now: Nanos) -> u8 {
        self.see(now);
        let byte = |word: u16| word.to_le_bytes()[usize::from(offset & 1)];
        match offset {
            0 | 1 => byte(self.status),
            2 | 3 => byte(self.enable),
            4 | 5 => byte(self.control | SCI_ENABLED),
            8..12 => Self::timer(now).to_le_bytes()[usize::from(offset & 3)],
            _ => 0,
        }
    }

    /// Writes a byte of the block.
    pub fn write(&mut self, offset: u16, value: u8, now: Nanos) -> Option<Request> {
        self.see(now);
        let shift = 8 * (offset & 1);
        let bits = u16::from(value) << shift;
        let merge = |old: u16, mask: u16| old & !(0xff << shift & mask) | bits & mask;
        match offset {
            0 | 1 => self.status &= !bits,
            2 | 3 => self.enable = merge(self.enable, ENABLES),
            4 | 5 => {
                self.control = merge(self.control, CONTROL_WRITABLE);
                let sleeps = bits & SLEEP_ENABLE != 0;
                let kind = (bits >> 10 & 7) as u8;
                return (sleeps && kind == SOFT_OFF).then_some(Request::PowerOff);
            }
            _ => {} // the timer cannot be written
        }
        None
    }

    /// Reads the reset control register.
    #[must_use]
    pub fn read_reset(&self) -> u8 {
        self.reset
    }

    /// Writes the reset control register: a rise of bit 2 resets.
    pub fn write_reset(&mut self, value: u8) -> Option<Request> {
        let rises = value & RESET_PROCESSOR != 0 && self.reset & RESET_PROCESSOR == 0;
        self.reset = value & (SYSTEM_RESET | RESET_PROCESSOR);
        rises.then_some(Request::Reset)
    }

    /// The level of the SCI.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.status & self.enable != 0
    }

    /// When the timer's status bit raises the SCI.
    #[must_use]
    pub fn next_event(&self) -> Option<Nanos> {
        let waits = self.enable & TIMER_CARRY != 0 && self.status & TIMER_CARRY == 0;
        waits.then(|| CLOCK.time_of((self.carries + 1).saturating_mul(HALF_RANGE)))
    }

    /// Raises the SCI if its time has come.
    pub fn tick(&mut self, now: Nanos) {
        self.see(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_runs_at_its_frequency_and_wraps() {
        assert_eq!(Pm::timer(1_000_000_000), 3_579_545);
        assert_eq!(Pm::timer(CLOCK.time_of(1 << 32)), 0);
        assert_eq!(Pm::timer(CLOCK.time_of((1 << 32) + 5)), 5);
        let mut pm = Pm::default();
        let bytes = [8, 9, 10, 11].map(|offset| pm.read(offset, 1_000_000_000));
        assert_eq!(u32::from_le_bytes(bytes), 3_579_545);
    }

    #[test]
    fn the_carry_raises_the_sci_until_it_is_cleared() {
        let mut pm = Pm::default();
        pm.write(2, 1, 0);
        let at = pm.next_event().expect("an event");
        assert_eq!(at, CLOCK.time_of(1 << 31));
        pm.tick(at);
        assert!(pm.irq());
        assert_eq!(pm.next_event(), None);
        pm.write(0, 1, at);
        assert!(!pm.irq());
        assert_eq!(pm.next_event(), Some(CLOCK.time_of(2 << 31)));
    }

    #[test]
    fn soft_off_powers_off() {
        let mut pm = Pm::default();
        assert_eq!(pm.read(4, 0), 1, "always in ACPI mode");
        assert_eq!(pm.write(5, SOFT_OFF << 2, 0), None);
        assert_eq!(pm.write(5, 1 << 2 | 0x20, 0), None, "S1 is not there");
        assert_eq!(pm.write(5, SOFT_OFF << 2 | 0x20, 0), Some(Request::PowerOff));
    }

    #[test]
    fn the_reset_register_acts_on_a_rise() {
        let mut pm = Pm::default();
        assert_eq!(pm.write_reset(0x02), None);
        assert_eq!(pm.write_reset(RESET_VALUE), Some(Request::Reset));
        assert_eq!(pm.write_reset(RESET_VALUE), None);
        assert_eq!(pm.read_reset(), RESET_VALUE);
    }
}
