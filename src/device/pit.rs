//! The 8254 interval timer and port 61H. Intel, "8254 Programmable Interval Timer", data sheet.

use super::Nanos;
use super::frequency::Frequency;

/// The timer's clock input on a PC.
pub const CLOCK: Frequency = Frequency::new(1_193_182);
/// The refresh request toggles bit 4 of port 61H about every 15 µs.
const REFRESH: Frequency = Frequency::new(66_667);

/// How a counter counts and drives OUT. "Mode Definitions".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    TerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

impl Mode {
    /// "Control Word Format": M2 is "don't care" in modes 2 and 3.
    fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn bits(self) -> u8 {
        self as u8
    }

    /// Does counting start with a rising edge of GATE instead of with the count?
    fn is_triggered_by_gate(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }

    /// Does the counter reload itself?
    fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }
}

/// Which bytes of the count go through the data port. "Control Word Format", RW1 and RW0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bytes {
    Low,
    High,
    LowThenHigh,
}

impl Bytes {
    fn bits(self) -> u8 {
        self as u8 + 1
    }
}

/// What a running counter does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Run {
    /// No count has been written since the control word, or no trigger came.
    Waiting,
    /// Counting since this clock.
    Since(u64),
    /// GATE is low; this many clocks had passed.
    Paused(u64),
}

#[derive(Clone, Debug)]
struct Counter {
    mode: Mode,
    bytes: Bytes,
    bcd: bool,
    /// The count register; 0 stands for the largest count.
    reload: u16,
    /// A count that replaces `reload` when the current cycle ends, at this clock.
    next: Option<(u64, u16)>,
    /// "NULL COUNT": the count has not reached the counting element.
    null_count: bool,
    run: Run,
    gate: bool,
    low_written: Option<u8>,
    high_is_next: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            bytes: Bytes::LowThenHigh,
            bcd: false,
            reload: 0,
            next: None,
            null_count: true,
            run: Run::Waiting,
            gate,
            low_written: None,
            high_is_next: false,
            latched: None,
            latched_status: None,
        }
    }

    /// How many states the counting element has.
    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// A count as a number of clocks.
    fn clocks(&self, count: u16) -> u64 {
        let clocks = if self.bcd { from_bcd(count) } else { u64::from(count) };
        if clocks == 0 { self.modulus() } else { clocks }
    }

    /// The count in force at `clock`, and how many clocks it has been counted for.
    fn progress(&self, clock: u64) -> (u64, Option<u64>) {
        if let Some((boundary, count)) = self.next.filter(|(boundary, _)| clock >= *boundary) {
            return (self.clocks(count), Some(clock - boundary));
        }
        let elapsed = match self.run {
            Run::Waiting => None,
            Run::Since(start) => Some(clock.saturating_sub(start)),
            Run::Paused(elapsed) => Some(elapsed),
        };
        (self.clocks(self.reload), elapsed)
    }

    fn count(&self, clock: u64) -> u16 {
        let modulus = self.modulus();
        let count = match (self.mode, self.progress(clock)) {
            (_, (period, None)) => period,
            (Mode::RateGenerator, (period, Some(elapsed))) => period - elapsed % period,
            (Mode::SquareWave, (period, Some(elapsed))) => square_wave(elapsed % period, period).0,
            (_, (period, Some(elapsed))) => period + modulus - elapsed % modulus,
        } % modulus;
        if self.bcd { to_bcd(count) } else { count as u16 }
    }

    /// The level of OUT.
    fn out(&self, clock: u64) -> bool {
        match (self.mode, self.progress(clock)) {
            (Mode::TerminalCount, (period, elapsed)) => elapsed.is_some_and(|elapsed| elapsed >= period),
            (_, (_, None)) => true,
            (Mode::OneShot, (period, Some(elapsed))) => elapsed >= period,
            (Mode::RateGenerator, (period, Some(elapsed))) => !self.gate || elapsed % period != period - 1,
            (Mode::SquareWave, (period, Some(elapsed))) => {
                !self.gate || square_wave(elapsed % period, period).1
            }
            (Mode::SoftwareStrobe | Mode::HardwareStrobe, (period, Some(elapsed))) => elapsed != period,
        }
    }

    /// The first clock after `clock` at which OUT rises.
    fn next_rise(&self, clock: u64) -> Option<u64> {
        let Run::Since(start) = self.run else { return None };
        if self.mode.is_periodic() {
            let (period, elapsed) = self.progress(clock.max(start));
            let rise = clock.max(start) - elapsed? % period + period;
            return Some(
                self.next.map_or(rise, |(boundary, _)| if clock < boundary { boundary } else { rise }),
            );
        }
        let strobe = matches!(self.mode, Mode::SoftwareStrobe | Mode::HardwareStrobe);
        let rise = start + self.clocks(self.reload) + u64::from(strobe);
        (rise > clock).then_some(rise)
    }

    /// Makes a count whose cycle has come the count register.
    fn settle(&mut self, clock: u64) {
        if let Some((boundary, count)) = self.next.take_if(|(boundary, _)| clock >= *boundary) {
            self.reload = count;
            self.run = Run::Since(boundary);
            self.null_count = false;
        }
    }

    fn write_control(&mut self, word: u8) {
        self.mode = Mode::from_bits(word >> 1);
        self.bcd = word & 1 != 0;
        self.bytes = match word >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::LowThenHigh,
        };
        self.run = Run::Waiting;
        self.next = None;
        self.null_count = true;
        self.low_written = None;
        self.high_is_next = false;
        self.latched = None;
        self.latched_status = None;
    }

    fn write(&mut self, value: u8, clock: u64) {
        let high = u16::from(value) << 8;
        match (self.bytes, self.low_written.take()) {
            (Bytes::Low, _) => self.load(u16::from(value), clock),
            (Bytes::High, _) => self.load(high, clock),
            (Bytes::LowThenHigh, Some(low)) => self.load(high | u16::from(low), clock),
            (Bytes::LowThenHigh, None) => {
                self.low_written = Some(value);
                // "Writing the first byte disables counting" in mode 0; OUT is set low immediately.
                if self.mode == Mode::TerminalCount {
                    self.run = Run::Waiting;
                }
            }
        }
    }

    /// A new count, with its effect on a running counter by mode.
    fn load(&mut self, count: u16, clock: u64) {
        self.settle(clock);
        if let (true, Run::Since(start)) = (self.mode.is_periodic(), self.run) {
            // "Writing a new count while counting does not affect the current counting sequence."
            let period = self.clocks(self.reload);
            let cycles = clock.saturating_sub(start) / period + 1;
            self.next = Some((start + cycles * period, count));
            self.null_count = true;
            return;
        }
        self.reload = count;
        self.null_count = false;
        if self.mode.is_triggered_by_gate() {
            return;
        }
        // The count is loaded with the next clock pulse.
        self.run = if self.gate { Run::Since(clock + 1) } else { Run::Paused(0) };
    }

    fn set_gate(&mut self, gate: bool, clock: u64) {
        self.settle(clock);
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            Mode::OneShot | Mode::HardwareStrobe if rises && !self.null_count => {
                self.run = Run::Since(clock + 1);
            }
            Mode::RateGenerator | Mode::SquareWave if rises && self.run != Run::Waiting => {
                self.run = Run::Since(clock + 1);
            }
            Mode::OneShot | Mode::HardwareStrobe => {}
            _ if falls => {
                if let Run::Since(start) = self.run {
                    self.run = Run::Paused(clock.saturating_sub(start));
                    self.reload = self.next.take().map_or(self.reload, |(_, count)| count);
                }
            }
            _ if rises => {
                if let Run::Paused(elapsed) = self.run {
                    self.run = Run::Since(clock.saturating_sub(elapsed));
                }
            }
            _ => {}
        }
    }

    fn latch(&mut self, clock: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.count(clock));
        }
    }

    fn latch_status(&mut self, clock: u64) {
        self.settle(clock);
        if self.latched_status.is_none() {
            let status = u8::from(self.out(clock)) << 7
                | u8::from(self.null_count) << 6
                | self.bytes.bits() << 4
                | self.mode.bits() << 1
                | u8::from(self.bcd);
            self.latched_status = Some(status);
        }
    }

    fn read(&mut self, clock: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(clock)).to_le_bytes();
        let high_now = match self.bytes {
            Bytes::Low => false,
            Bytes::High => true,
            Bytes::LowThenHigh => {
                self.high_is_next = !self.high_is_next;
                !self.high_is_next
            }
        };
        if self.bytes != Bytes::LowThenHigh || high_now {
            self.latched = None;
        }
        if high_now { high } else { low }
    }
}

/// Count and OUT at `phase` of a square wave: OUT is high for the first, not shorter half; the count goes down
/// by two in each half.
fn square_wave(phase: u64, period: u64) -> (u64, bool) {
    let high = period.div_ceil(2);
    let even = period & !1;
    if phase < high { (even.saturating_sub(2 * phase), true) } else { (even - 2 * (phase - high), false) }
}

fn from_bcd(value: u16) -> u64 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u64::from(value >> (4 * digit) & 0xf))
}

fn to_bcd(value: u64) -> u16 {
    let mut rest = value;
    let mut bcd = 0;
    for digit in 0..4 {
        bcd |= ((rest % 10) as u16) << (4 * digit);
        rest /= 10;
    }
    bcd
}

/// The timer. Counter 0 drives IRQ 0, counter 1 was DRAM refresh, counter 2 drives the speaker under the gate of
/// port 61H.
#[derive(Clone, Debug)]
pub struct Pit {
    counters: [Counter; 3],
    speaker: bool,
    /// The clock up to which rises of OUT 0 have been reported.
    reported: u64,
    /// When OUT 0 rises next: asked for at each exit, changed seldom.
    next: Option<Nanos>,
}

impl Default for Pit {
    fn default() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            speaker: false,
            reported: 0,
            next: None,
        }
    }
}

impl Pit {
    /// Reads ports 40H to 43H, by offset.
    pub fn read(&mut self, offset: u16, now: Nanos) -> u8 {
        match self.counters.get_mut(usize::from(offset)) {
            Some(counter) => counter.read(CLOCK.ticks(now)),
            None => 0xff, // the control word register cannot be read
        }
    }

    /// Writes ports 40H to 43H, by offset.
    pub fn write(&mut self, offset: u16, value: u8, now: Nanos) {
        let clock = CLOCK.ticks(now);
        match self.counters.get_mut(usize::from(offset)) {
            Some(counter) => counter.write(value, clock),
            None => self.write_control(value, clock),
        }
        self.plan();
    }

    fn write_control(&mut self, word: u8, clock: u64) {
        let select = usize::from(word >> 6);
        match self.counters.get_mut(select) {
            Some(counter) if word & 0x30 == 0 => counter.latch(clock),
            Some(counter) => counter.write_control(word),
            None => self.read_back(word, clock),
        }
    }

    /// "Read-Back Command": bit 5 low latches counts, bit 4 low status, bits 3:1 select counters 2:0.
    fn read_back(&mut self, word: u8, clock: u64) {
        for (i, counter) in self.counters.iter_mut().enumerate() {
            if word & (2 << i) == 0 {
                continue;
            }
            if word & 0x20 == 0 {
                counter.latch(clock);
            }
            if word & 0x10 == 0 {
                counter.latch_status(clock);
            }
        }
    }

    /// Reads port 61H.
    #[must_use]
    pub fn read_port_61(&self, now: Nanos) -> u8 {
        let [_, _, speaker] = &self.counters;
        u8::from(speaker.gate)
            | u8::from(self.speaker) << 1
            | ((REFRESH.ticks(now) & 1) as u8) << 4
            | u8::from(speaker.out(CLOCK.ticks(now))) << 5
    }

    /// Writes port 61H: the gate of counter 2 and the speaker.
    pub fn write_port_61(&mut self, value: u8, now: Nanos) {
        self.counters[2].set_gate(value & 1 != 0, CLOCK.ticks(now));
        self.speaker = value & 2 != 0;
    }

    /// The level of OUT 0, which is IRQ 0.
    #[must_use]
    pub fn irq(&self, now: Nanos) -> bool {
        self.counters[0].out(CLOCK.ticks(now))
    }

    /// When OUT 0 rises next.
    #[must_use]
    pub fn next_event(&self) -> Option<Nanos> {
        self.next
    }

    fn plan(&mut self) {
        self.next = self.counters[0].next_rise(self.reported).map(|clock| CLOCK.time_of(clock));
    }

    /// Has OUT 0 risen since it was last asked?
    pub fn tick(&mut self, now: Nanos) -> bool {
        let rose = self.next.is_some_and(|at| at <= now);
        if rose {
            self.reported = self.reported.max(CLOCK.ticks(now));
            self.plan();
        }
        rose
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(clock: u64) -> Nanos {
        CLOCK.time_of(clock)
    }

    /// Programs a counter with both bytes at clock 0; counting begins with clock 1.
    fn programmed(counter: u16, mode: u8, count: u16) -> Pit {
        let mut pit = Pit::default();
        pit.write_port_61(1, 0);
        pit.write(3, (counter as u8) << 6 | 0x30 | mode << 1, 0);
        let [low, high] = count.to_le_bytes();
        pit.write(counter, low, 0);
        pit.write(counter, high, 0);
        pit
    }

    fn latched(pit: &mut Pit, counter: u16, clock: u64) -> u16 {
        pit.write(3, (counter as u8) << 6, at(clock));
        u16::from_le_bytes([pit.read(counter, at(clock)), pit.read(counter, at(clock))])
    }

    #[test]
    fn mode_0_counts_down_once_and_out_goes_high_at_zero() {
        let mut pit = programmed(0, 0, 1000);
        assert_eq!(latched(&mut pit, 0, 1), 1000);
        assert_eq!(latched(&mut pit, 0, 11), 990);
        assert!(!pit.irq(at(1000)));
        assert!(pit.irq(at(1001)));
        assert_eq!(latched(&mut pit, 0, 1002), 0xffff);
    }

    #[test]
    fn mode_0_interrupts_once() {
        let mut pit = programmed(0, 0, 1000);
        assert_eq!(pit.next_event(), Some(at(1001)));
        assert!(!pit.tick(at(1000)));
        assert!(pit.tick(at(1001)));
        assert_eq!(pit.next_event(), None);
    }

    #[test]
    fn mode_2_is_periodic_and_low_for_one_clock() {
        let mut pit = programmed(0, 2, 100);
        assert!(pit.irq(at(1)));
        assert!(!pit.irq(at(100)));
        assert!(pit.irq(at(101)));
        assert_eq!(pit.next_event(), Some(at(101)));
        assert!(pit.tick(at(101)));
        assert_eq!(pit.next_event(), Some(at(201)));
        assert!(pit.tick(at(1000)), "missed periods count once");
        assert_eq!(pit.next_event(), Some(at(1001)));
        assert_eq!(latched(&mut pit, 0, 1001), 100);
        assert_eq!(latched(&mut pit, 0, 1002), 99);
        assert_eq!(latched(&mut pit, 0, 1100), 1);
    }

    #[test]
    fn mode_3_halves_the_period_between_high_and_low() {
        let mut pit = programmed(0, 3, 10);
        let levels: Vec<bool> = (1..21).map(|clock| pit.irq(at(clock))).collect();
        assert_eq!(levels, [[true; 5], [false; 5], [true; 5], [false; 5]].concat());
        assert_eq!([1, 2, 5, 6].map(|clock| latched(&mut pit, 0, clock)), [10, 8, 2, 10]);
        let odd = programmed(0, 3, 5);
        let levels: Vec<bool> = (1..6).map(|clock| odd.irq(at(clock))).collect();
        assert_eq!(levels, [true, true, true, false, false]);
    }

    #[test]
    fn mode_4_strobes_for_one_clock() {
        let pit = programmed(0, 4, 5);
        let levels: Vec<bool> = (1..9).map(|clock| pit.irq(at(clock))).collect();
        assert_eq!(levels, [true, true, true, true, true, false, true, true]);
        assert_eq!(pit.next_event(), Some(at(7)));
    }

    #[test]
    fn mode_1_waits_for_the_gate() {
        let mut pit = Pit::default();
        pit.write(3, 0b1011_0010, 0);
        pit.write(2, 5, 0);
        pit.write(2, 0, 0);
        assert_eq!(pit.read_port_61(at(3)) & 0x20, 0x20);
        pit.write_port_61(1, at(10));
        assert_eq!(pit.read_port_61(at(11)) & 0x20, 0);
        assert_eq!(pit.read_port_61(at(16)) & 0x20, 0x20);
    }

    #[test]
    fn gate_2_holds_the_count_and_out_2_shows_in_port_61() {
        let mut pit = programmed(2, 0, 1000);
        pit.write_port_61(0, at(101));
        assert_eq!(latched(&mut pit, 2, 500), 900);
        pit.write_port_61(1, at(600));
        assert_eq!(latched(&mut pit, 2, 700), 800);
        assert_eq!(pit.read_port_61(at(1499)) & 0x21, 0x01);
        assert_eq!(pit.read_port_61(at(1500)) & 0x21, 0x21);
    }

    #[test]
    fn count_zero_is_the_largest_count() {
        let pit = programmed(0, 2, 0);
        assert_eq!(pit.next_event(), Some(at(65_537)));
    }

    #[test]
    fn unlatched_reads_alternate_between_low_and_high_byte() {
        let mut pit = programmed(2, 0, 0xffff);
        assert_eq!(pit.read(2, at(2)), 0xfe);
        assert_eq!(pit.read(2, at(2)), 0xff);
        assert_eq!(pit.read(2, at(0x101)), 0xff);
        assert_eq!(pit.read(2, at(0x101)), 0xfe);
    }

    #[test]
    fn a_latched_count_holds_until_it_is_read() {
        let mut pit = programmed(0, 2, 1000);
        pit.write(3, 0, at(11));
        pit.write(3, 0, at(200));
        let count = u16::from_le_bytes([pit.read(0, at(300)), pit.read(0, at(300))]);
        assert_eq!(count, 990);
        assert_eq!(pit.read(0, at(301)), (1000u16 - 300) as u8);
    }

    #[test]
    fn read_back_latches_status_before_count() {
        let mut pit = programmed(0, 2, 1000);
        pit.write(3, 0b1100_0010, at(11));
        assert_eq!(pit.read(0, at(50)), 0b1011_0100);
        assert_eq!(u16::from_le_bytes([pit.read(0, at(50)), pit.read(0, at(50))]), 990);
    }

    #[test]
    fn a_mode_0_counter_stops_between_the_two_bytes() {
        let mut pit = programmed(0, 0, 1000);
        pit.write(0, 5, at(900));
        assert_eq!(pit.next_event(), None);
        assert!(!pit.irq(at(5000)));
    }

    #[test]
    fn bcd_counts_decimal() {
        let mut pit = Pit::default();
        pit.write(3, 0x31, 0);
        pit.write(0, 0x00, 0);
        pit.write(0, 0x10, 0);
        assert_eq!(latched(&mut pit, 0, 2), 0x0999);
    }

    #[test]
    fn a_new_count_in_mode_2_takes_effect_at_the_end_of_the_cycle() {
        let mut pit = programmed(0, 2, 100);
        pit.write(0, 50, at(31));
        pit.write(0, 0, at(31));
        assert_eq!(latched(&mut pit, 0, 41), 60);
        assert_eq!(pit.next_event(), Some(at(101)));
        assert!(pit.tick(at(101)));
        assert_eq!(pit.next_event(), Some(at(151)));
        assert_eq!(latched(&mut pit, 0, 111), 40);
    }

    #[test]
    fn refresh_toggles() {
        let pit = Pit::default();
        assert_ne!(pit.read_port_61(0) & 0x10, pit.read_port_61(15_500) & 0x10);
    }
}
