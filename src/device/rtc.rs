//! The CMOS real-time clock and its RAM. Motorola, "MC146818 Real-Time Clock plus RAM", data sheet; the PC's
//! memory sizes in the RAM.

mod calendar;

use super::Nanos;
use super::frequency::Frequency;
use calendar::DateTime;
use vmcs12::bits;

const SECOND: Nanos = 1_000_000_000;
const DAY: u64 = 86_400;
/// "The UIP bit goes high 244 µs before the update", which takes 1984 µs with a 32,768-Hz time base.
const UPDATE_IN_PROGRESS: Nanos = 244_000;

const ALARM_SECONDS: usize = 1;
const ALARM_MINUTES: usize = 3;
const ALARM_HOURS: usize = 5;
const REGISTER_A: usize = 0x0a;
const REGISTER_B: usize = 0x0b;
const REGISTER_C: usize = 0x0c;
const REGISTER_D: usize = 0x0d;
const CENTURY: usize = 0x32;
const RAM_SIZE: usize = 128;

/// The registers that show the date and the time.
const TIME: [usize; 8] = [0, 2, 4, 6, 7, 8, 9, CENTURY];
/// An alarm register from here on matches every value.
const ANY: u8 = 0xc0;

const PM: u8 = 0x80;
const UIP: u8 = 0x80;
const VALID: u8 = 0x80;
/// Divider for 32,768 Hz, 1024 interrupts a second.
const REGISTER_A_DEFAULT: u8 = 0x26;

bits! {
    /// Register B.
    pub struct Control: u8 {
        DAYLIGHT    0 bool;
        HOURS_24    1 bool;
        BINARY      2 bool;
        SQUARE_WAVE 3 bool;
        UPDATE      4 bool;
        ALARM       5 bool;
        PERIODIC    6 bool;
        SET         7 bool;
    }
}

/// Register C: the flags stand where register B has their enables.
mod flag {
    pub const UPDATE: u8 = 1 << 4;
    pub const ALARM: u8 = 1 << 5;
    pub const PERIODIC: u8 = 1 << 6;
    pub const REQUEST: u8 = 1 << 7;
    pub const ALL: u8 = UPDATE | ALARM | PERIODIC;
}

/// The clock.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    ram: [u8; RAM_SIZE],
    /// Seconds since 1970 at virtual time 0.
    base: i64,
    /// The time up to which the flags are those of register C.
    seen: Nanos,
    flags: u8,
}

impl Rtc {
    /// A clock that shows `base`, in seconds since 1970, at virtual time 0, in a machine with so many
    /// bytes of RAM below and above 4 GiB.
    #[must_use]
    pub fn new(base: i64, below_4g: u64, above_4g: u64) -> Self {
        let mut ram = [0; RAM_SIZE];
        ram[REGISTER_A] = REGISTER_A_DEFAULT;
        ram[REGISTER_B] = Control(0).with(Control::HOURS_24, true).0;
        store_memory_sizes(&mut ram, below_4g, above_4g);
        Self { index: 0, ram, base, seen: 0, flags: 0 }
    }

    /// Reads port 70H (offset 0) or 71H (offset 1).
    pub fn read(&mut self, offset: u16, now: Nanos) -> u8 {
        if offset == 0 { 0xff } else { self.read_register(now) }
    }

    /// Writes port 70H (offset 0; bit 7 masks NMI, which nothing raises) or 71H (offset 1).
    pub fn write(&mut self, offset: u16, value: u8, now: Nanos) {
        if offset == 0 {
            self.index = value & 0x7f;
        } else {
            self.write_register(value, now);
        }
    }

    fn control(&self) -> Control {
        Control(self.ram[REGISTER_B])
    }

    fn seconds(&self, now: Nanos) -> i64 {
        self.base.saturating_add((now / SECOND) as i64)
    }

    fn read_register(&mut self, now: Nanos) -> u8 {
        match usize::from(self.index) {
            index if TIME.contains(&index) => self.time_registers(now)[index],
            REGISTER_A => self.ram[REGISTER_A] | self.update_in_progress(now),
            REGISTER_C => self.take_flags(now),
            REGISTER_D => VALID,
            index => self.ram[index],
        }
    }

    fn update_in_progress(&self, now: Nanos) -> u8 {
        let soon = now % SECOND >= SECOND - UPDATE_IN_PROGRESS;
        if soon && !self.control().get(Control::SET) { UIP } else { 0 }
    }

    /// The RAM with the date and the time in it, unless SET holds them.
    fn time_registers(&self, now: Nanos) -> [u8; RAM_SIZE] {
        let mut ram = self.ram;
        if self.control().get(Control::SET) {
            return ram;
        }
        let date = DateTime::from_seconds(self.seconds(now));
        let year = date.year.rem_euclid(10_000) as u32;
        let fields = [
            date.second,
            date.minute,
            date.hour,
            date.weekday + 1,
            date.day,
            date.month,
            year % 100,
            year / 100,
        ];
        for (register, field) in TIME.into_iter().zip(fields) {
            ram[register] = self.encode(field as u8);
        }
        ram[4] = self.encode_hour(date.hour as u8);
        ram
    }

    fn encode(&self, value: u8) -> u8 {
        if self.control().get(Control::BINARY) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.control().get(Control::BINARY) { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.control().get(Control::HOURS_24) {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.control().get(Control::HOURS_24) {
            return self.decode(value);
        }
        let hour = self.decode(value & !PM) % 12;
        if value & PM != 0 { hour + 12 } else { hour }
    }

    fn write_register(&mut self, value: u8, now: Nanos) {
        self.see(now);
        match usize::from(self.index) {
            index if TIME.contains(&index) => {
                self.ram = self.time_registers(now);
                self.ram[index] = value;
                if !self.control().get(Control::SET) {
                    self.set_time(now);
                }
            }
            REGISTER_A => self.ram[REGISTER_A] = value & !UIP,
            REGISTER_B => self.write_control(Control(value), now),
            REGISTER_C | REGISTER_D => {} // read-only
            index => self.ram[index] = value,
        }
    }

    /// SET holds the time registers; clearing it starts the clock with what they hold. Time registers do not
    /// change with the format: software writes them again, which is why they are fetched before.
    fn write_control(&mut self, new: Control, now: Nanos) {
        let was_set = self.control().get(Control::SET);
        if new.get(Control::SET) && !was_set {
            self.ram = self.time_registers(now);
        }
        // SET also clears the update-ended interrupt enable.
        let new = if new.get(Control::SET) { new.with(Control::UPDATE, false) } else { new };
        self.ram[REGISTER_B] = new.0;
        if was_set && !new.get(Control::SET) {
            self.set_time(now);
        }
    }

    fn set_time(&mut self, now: Nanos) {
        let field = |register: usize| u32::from(self.decode(self.ram[register]));
        let date = DateTime {
            year: i64::from(field(CENTURY) * 100 + field(9)),
            month: field(8),
            day: field(7),
            weekday: 0,
            hour: u32::from(self.decode_hour(self.ram[4])),
            minute: field(2),
            second: field(0),
        };
        self.base = date.to_seconds() - (now / SECOND) as i64;
    }

    /// The period of the periodic interrupt: register A, RS. Rates 1 and 2 are those of 8 and 9.
    fn periodic(&self) -> Option<Frequency> {
        match self.ram[REGISTER_A] & 0xf {
            0 => None,
            rate @ (1 | 2) => Some(Frequency::new(512 >> rate)),
            rate => Some(Frequency::new(0x1_0000 >> rate)),
        }
    }

    /// The next time after `after` at which the alarm registers match.
    fn next_alarm(&self, after: Nanos) -> Option<Nanos> {
        let field = |register: usize, limit: u8, decode: fn(&Self, u8) -> u8| {
            let raw = self.ram[register];
            if raw >= ANY {
                return Some(None);
            }
            let value = decode(self, raw);
            (value < limit).then_some(Some(u64::from(value)))
        };
        let hour = field(ALARM_HOURS, 24, Self::decode_hour)?;
        let minute = field(ALARM_MINUTES, 60, Self::decode)?;
        let second = field(ALARM_SECONDS, 60, Self::decode)?;
        let today = self.seconds(after).rem_euclid(DAY as i64) as u64;
        let mut at = today + 1;
        // Each step goes to the next hour, minute or second: at most 25, 60 and 60 of them.
        loop {
            let is = |wanted: Option<u64>, value: u64| wanted.is_none_or(|wanted| wanted == value);
            if !is(hour, at / 3600 % 24) {
                at = (at / 3600 + 1) * 3600;
            } else if !is(minute, at / 60 % 60) {
                at = (at / 60 + 1) * 60;
            } else if !is(second, at % 60) {
                at += 1;
            } else {
                return Some((after / SECOND + at - today) * SECOND);
            }
        }
    }

    /// Brings the flags up to `now`.
    fn see(&mut self, now: Nanos) {
        if now <= self.seen {
            return;
        }
        if self.periodic().is_some_and(|rate| rate.ticks(now) > rate.ticks(self.seen)) {
            self.flags |= flag::PERIODIC;
        }
        if !self.control().get(Control::SET) && now / SECOND > self.seen / SECOND {
            self.flags |= flag::UPDATE;
            if self.next_alarm(self.seen).is_some_and(|at| at <= now) {
                self.flags |= flag::ALARM;
            }
        }
        self.seen = now;
    }

    /// Reading register C clears it.
    fn take_flags(&mut self, now: Nanos) -> u8 {
        self.see(now);
        let request = if self.irq() { flag::REQUEST } else { 0 };
        std::mem::take(&mut self.flags) | request
    }

    /// The level of the interrupt line.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.flags & self.ram[REGISTER_B] & flag::ALL != 0
    }

    /// When an interrupt that is enabled comes next.
    #[must_use]
    pub fn next_event(&self) -> Option<Nanos> {
        let control = self.control();
        if control.0 & flag::ALL == 0 || self.irq() {
            return None;
        }
        let periodic = self.periodic().filter(|_| control.get(Control::PERIODIC));
        let periodic = periodic.map(|rate| rate.time_of(rate.ticks(self.seen) + 1));
        let running = !control.get(Control::SET);
        let update = (running && control.get(Control::UPDATE)).then(|| (self.seen / SECOND + 1) * SECOND);
        let alarm = if running && control.get(Control::ALARM) { self.next_alarm(self.seen) } else { None };
        [periodic, update, alarm].into_iter().flatten().min()
    }

    /// Raises the interrupts whose time has come.
    pub fn tick(&mut self, now: Nanos) {
        self.see(now);
    }
}

/// Base memory in KiB, extended memory in KiB above 1 MiB and in 64 KiB above 16 MiB, and in 64 KiB above 4 GiB.
fn store_memory_sizes(ram: &mut [u8; RAM_SIZE], below_4g: u64, above_4g: u64) {
    let mut store = |register: usize, bytes: usize, value: u64| {
        let value = value.min((1 << (8 * bytes)) - 1).to_le_bytes();
        ram[register..register + bytes].copy_from_slice(&value[..bytes]);
    };
    let extended = below_4g.saturating_sub(1 << 20) >> 10;
    store(0x15, 2, 640);
    store(0x17, 2, extended);
    store(0x30, 2, extended);
    store(0x34, 2, below_4g.saturating_sub(16 << 20) >> 16);
    store(0x5b, 3, above_4g >> 16);
}

#[cfg(test)]
mod tests;
