//! The pair of 8259A interrupt controllers. Intel, "8259A Programmable Interrupt Controller", data sheet.

use super::irq::CASCADE;

/// What the next write to the data port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Mask,
    VectorBase,
    Cascade,
    Mode,
}

/// Which register a read of the command port returns. "OCW3", RR and RIS; P.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ReadSelect {
    Requests,
    InService,
    Poll,
}

#[derive(Clone, Debug)]
struct Chip {
    /// Levels of the inputs.
    lines: u8,
    requests: u8,
    in_service: u8,
    mask: u8,
    /// Inputs that are level-triggered (ELCR).
    level: u8,
    vector_base: u8,
    /// The input with the lowest priority; the one after it has the highest.
    lowest: u8,
    expect: Expect,
    needs_mode: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read: ReadSelect,
}

impl Chip {
    fn new() -> Self {
        Self {
            lines: 0,
            requests: 0,
            in_service: 0,
            mask: 0,
            level: 0,
            vector_base: 0,
            lowest: 7,
            expect: Expect::Mask,
            needs_mode: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read: ReadSelect::Requests,
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        let rises = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if self.level & bit != 0 {
            self.requests = self.requests & !bit | self.lines & bit;
        } else if rises {
            self.requests |= bit;
        }
    }

    /// How many inputs precede the highest-priority one of `bits`; 8 if there is none.
    fn rank(&self, bits: u8) -> u8 {
        let first = (self.lowest + 1) & 7;
        bits.rotate_right(u32::from(first)).trailing_zeros() as u8
    }

    fn input_of(&self, rank: u8) -> u8 {
        (rank + self.lowest + 1) & 7
    }

    /// The input that is requesting service, if it may interrupt now.
    fn pending(&self) -> Option<u8> {
        let request = self.rank(self.requests & !self.mask);
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.special_fully_nested {
            blocking &= !(1 << CASCADE);
        }
        (request < self.rank(blocking)).then(|| self.input_of(request))
    }

    /// The input goes from request to service.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.level & bit == 0 {
            self.requests &= !bit;
        }
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn write_command(&mut self, value: u8) {
        match value >> 3 & 3 {
            0 => self.write_ocw2(value),
            1 => self.write_ocw3(value),
            _ => self.write_icw1(value),
        }
    }

    /// "ICW1": the edge sense circuit and the mask register are cleared, IR7 gets priority 7, special mask mode
    /// is cleared, status read is set to IRR.
    fn write_icw1(&mut self, value: u8) {
        let (lines, level) = (self.lines, self.level);
        *self = Self::new();
        (self.lines, self.level) = (lines, level);
        self.requests = lines & level;
        self.needs_mode = value & 1 != 0;
        self.single = value & 2 != 0;
        self.expect = Expect::VectorBase;
    }

    /// "OCW2": R, SL, EOI.
    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => _ = self.end_highest(),
            0b101 => {
                if let Some(input) = self.end_highest() {
                    self.lowest = input;
                }
            }
            0b011 => self.in_service &= !(1 << input),
            0b111 => {
                self.in_service &= !(1 << input);
                self.lowest = input;
            }
            0b110 => self.lowest = input,
            _ => {} // 010: no operation
        }
    }

    fn end_highest(&mut self) -> Option<u8> {
        let candidates = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        let rank = self.rank(candidates);
        (rank < 8).then(|| {
            let input = self.input_of(rank);
            self.in_service &= !(1 << input);
            input
        })
    }

    fn write_ocw3(&mut self, value: u8) {
        match value >> 5 & 3 {
            0b10 => self.special_mask = false,
            0b11 => self.special_mask = true,
            _ => {}
        }
        if value & 4 != 0 {
            self.read = ReadSelect::Poll;
            return;
        }
        match value & 3 {
            0b10 => self.read = ReadSelect::Requests,
            0b11 => self.read = ReadSelect::InService,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_cascade = if self.needs_mode { Expect::Mode } else { Expect::Mask };
        match self.expect {
            Expect::Mask => self.mask = value,
            Expect::VectorBase => {
                self.vector_base = value & 0xf8;
                self.expect = if self.single { after_cascade } else { Expect::Cascade };
            }
            Expect::Cascade => self.expect = after_cascade, // the cascade is wired
            Expect::Mode => {
                self.auto_eoi = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.expect = Expect::Mask;
            }
        }
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if self.read == ReadSelect::Poll {
            self.read = ReadSelect::Requests;
            return self.poll();
        }
        match (data_port, self.read) {
            (true, _) => self.mask,
            (false, ReadSelect::InService) => self.in_service,
            (false, _) => self.requests,
        }
    }

    /// "Poll Command": the read is treated as an interrupt acknowledge.
    fn poll(&mut self) -> u8 {
        match self.pending() {
            Some(input) => {
                self.acknowledge(input);
                0x80 | input
            }
            None => 0,
        }
    }
}

/// The two controllers, the second on input 2 of the first.
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

/// One of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// IRQ 0 to 7, ports 20H and 21H.
    Master,
    /// IRQ 8 to 15, ports A0H and A1H.
    Slave,
}

/// Inputs that ELCR cannot make level-triggered: the timer, the keyboard and the cascade; the RTC and IRQ 13.
const ALWAYS_EDGE: [u8; 2] = [0b0000_0111, 0b0010_0001];

impl Default for Pic {
    fn default() -> Self {
        Self { master: Chip::new(), slave: Chip::new() }
    }
}

impl Pic {
    fn half(&mut self, half: Half) -> &mut Chip {
        match half {
            Half::Master => &mut self.master,
            Half::Slave => &mut self.slave,
        }
    }

    /// The slave's INT pin is input 2 of the master.
    fn cascade(&mut self) {
        let interrupt = self.slave.pending().is_some();
        let bit = 1 << CASCADE;
        self.master.lines = self.master.lines & !bit | u8::from(interrupt) << CASCADE;
        // As if level-triggered: a request that the slave no longer makes is withdrawn.
        self.master.requests = self.master.requests & !bit | self.master.lines & bit;
    }

    /// Drives the line of IRQ 0 to 15.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.master.set_line(irq, high),
            8..=15 => {
                self.slave.set_line(irq - 8, high);
                self.cascade();
            }
            _ => {}
        }
    }

    /// The level of INTR.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.master.pending().is_some()
    }

    /// The vector that [`Pic::acknowledge`] would return now.
    #[must_use]
    pub fn pending_vector(&self) -> u8 {
        match self.master.pending() {
            None => self.master.vector_base | 7,
            Some(CASCADE) => self.slave.vector_base | self.slave.pending().unwrap_or(7),
            Some(input) => self.master.vector_base | input,
        }
    }

    /// The interrupt-acknowledge sequence: the vector. Without a request it is that of input 7, which is not
    /// put in service ("if the IR input is not there, the 8259A issues an interrupt level 7").
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending() else { return self.master.vector_base | 7 };
        self.master.acknowledge(input);
        if input != CASCADE {
            return self.master.vector_base | input;
        }
        let slave = self.slave.pending();
        if let Some(input) = slave {
            self.slave.acknowledge(input);
        }
        self.cascade();
        self.slave.vector_base | slave.unwrap_or(7)
    }

    /// Reads the command (offset 0) or the data port (offset 1).
    pub fn read(&mut self, half: Half, offset: u16) -> u8 {
        let value = self.half(half).read(offset != 0);
        self.cascade();
        value
    }

    /// Writes the command (offset 0) or the data port (offset 1).
    pub fn write(&mut self, half: Half, offset: u16, value: u8) {
        let chip = self.half(half);
        if offset == 0 {
            chip.write_command(value)
        } else {
            chip.write_data(value)
        }
        self.cascade();
    }

    /// Reads an edge/level control register, ports 4D0H and 4D1H.
    #[must_use]
    pub fn read_elcr(&self, half: Half) -> u8 {
        match half {
            Half::Master => self.master.level,
            Half::Slave => self.slave.level,
        }
    }

    /// Writes an edge/level control register.
    pub fn write_elcr(&mut self, half: Half, value: u8) {
        self.half(half).level = value & !ALWAYS_EDGE[half as usize];
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Half::{Master, Slave};

    fn initialised() -> Pic {
        let mut pic = Pic::default();
        for (half, base, cascade) in [(Master, 0x20, 4), (Slave, 0x28, 2)] {
            pic.write(half, 0, 0x11);
            pic.write(half, 1, base);
            pic.write(half, 1, cascade);
            pic.write(half, 1, 1);
            pic.write(half, 1, 0);
        }
        pic
    }

    #[test]
    fn a_lower_input_has_priority_and_blocks_until_eoi() {
        let mut pic = initialised();
        pic.set_line(4, true);
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x21);
        assert!(!pic.interrupt(), "IRQ 4 waits for the end of IRQ 1");
        pic.write(Master, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x24);
        pic.set_line(0, true);
        assert!(pic.interrupt(), "IRQ 0 interrupts IRQ 4");
    }

    #[test]
    fn the_slave_goes_through_input_2() {
        let mut pic = initialised();
        pic.set_line(8, true);
        assert_eq!(pic.acknowledge(), 0x28);
        pic.write(Master, 0, 0x0b);
        assert_eq!(pic.read(Master, 0), 1 << 2);
        pic.set_line(12, true);
        pic.set_line(3, true);
        assert!(!pic.interrupt());
        pic.write(Slave, 0, 0x20);
        pic.write(Master, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x2c, "the slave ranks before IRQ 3");
    }

    #[test]
    fn an_edge_is_latched_once() {
        let mut pic = initialised();
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x24);
        pic.write(Master, 0, 0x20);
        assert!(!pic.interrupt(), "still high is no new edge");
        pic.set_line(4, false);
        pic.set_line(4, true);
        assert!(pic.interrupt());
    }

    #[test]
    fn a_level_comes_back_after_eoi_until_it_is_low() {
        let mut pic = initialised();
        pic.write_elcr(Slave, 0x02);
        assert_eq!(pic.read_elcr(Slave), 0x02);
        pic.set_line(9, true);
        assert_eq!(pic.acknowledge(), 0x29);
        pic.write(Slave, 0, 0x61);
        pic.write(Master, 0, 0x62);
        assert!(pic.interrupt());
        pic.set_line(9, false);
        assert!(!pic.interrupt());
    }

    #[test]
    fn masked_inputs_keep_their_request() {
        let mut pic = initialised();
        pic.write(Master, 1, 0xff);
        pic.set_line(4, true);
        assert!(!pic.interrupt());
        assert_eq!(pic.read(Master, 0), 1 << 4);
        pic.write(Master, 1, 0xef);
        assert_eq!(pic.read(Master, 1), 0xef);
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn a_request_that_vanished_is_level_7_without_service() {
        let mut pic = initialised();
        assert_eq!(pic.acknowledge(), 0x27);
        pic.write(Master, 0, 0x0b);
        assert_eq!(pic.read(Master, 0), 0);
    }

    #[test]
    fn auto_eoi_leaves_nothing_in_service() {
        let mut pic = initialised();
        pic.write(Master, 0, 0x11);
        pic.write(Master, 1, 0x20);
        pic.write(Master, 1, 4);
        pic.write(Master, 1, 3);
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x20);
        pic.set_line(0, false);
        pic.set_line(0, true);
        assert!(pic.interrupt());
    }

    #[test]
    fn rotation_makes_the_served_input_the_lowest() {
        let mut pic = initialised();
        pic.set_line(1, true);
        pic.acknowledge();
        pic.write(Master, 0, 0xa0);
        pic.set_line(1, false);
        pic.set_line(1, true);
        pic.set_line(6, true);
        assert_eq!(pic.acknowledge(), 0x26);
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_through() {
        let mut pic = initialised();
        pic.set_line(1, true);
        pic.acknowledge();
        pic.set_line(5, true);
        assert!(!pic.interrupt());
        pic.write(Master, 1, 0x02);
        pic.write(Master, 0, 0x68);
        assert_eq!(pic.acknowledge(), 0x25);
    }

    #[test]
    fn poll_acknowledges() {
        let mut pic = initialised();
        pic.set_line(3, true);
        pic.write(Master, 0, 0x0c);
        assert_eq!(pic.read(Master, 0), 0x83);
        pic.write(Master, 0, 0x0b);
        assert_eq!(pic.read(Master, 0), 1 << 3);
    }

    #[test]
    fn elcr_cannot_change_the_system_inputs() {
        let mut pic = initialised();
        pic.write_elcr(Master, 0xff);
        pic.write_elcr(Slave, 0xff);
        assert_eq!((pic.read_elcr(Master), pic.read_elcr(Slave)), (0xf8, 0xde));
    }
}
