//! The I/O APIC. Intel, "82093AA I/O Advanced Programmable Interrupt Controller (IOAPIC)", data sheet; version 20H
//! adds the EOI register.

use super::lapic::message::{Destination, Message, Mode, Trigger};
use vmcs12::bits;

/// Number of interrupt inputs.
pub const PINS: usize = 24;
/// Where the registers are in L1-physical memory.
pub const BASE: u64 = 0xfec0_0000;
/// How much of it they take.
pub const SIZE: u64 = 0x1000;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const IOAPICID: u8 = 0;
const IOAPICVER: u8 = 1;
const IOAPICARB: u8 = 2;
const IOREDTBL: u8 = 0x10;

const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

bits! {
    /// I/O redirection table entry.
    pub struct Redirection: u64 {
        VECTOR             7:0   u8;
        DELIVERY_MODE     10:8   u8;
        LOGICAL           11     bool;
        DELIVERY_STATUS   12     bool;
        ACTIVE_LOW        13     bool;
        REMOTE_IRR        14     bool;
        LEVEL             15     bool;
        MASKED            16     bool;
        DESTINATION       63:56  u8;
    }
}

impl Redirection {
    /// The bits that software cannot write.
    const READ_ONLY: u64 = Self::DELIVERY_STATUS.mask() | Self::REMOTE_IRR.mask();

    fn message(self) -> Message {
        let destination = u32::from(self.get(Self::DESTINATION));
        Message {
            vector: self.get(Self::VECTOR),
            mode: Mode::from_bits(self.get(Self::DELIVERY_MODE)),
            trigger: if self.get(Self::LEVEL) { Trigger::Level } else { Trigger::Edge },
            destination: match self.get(Self::LOGICAL) {
                true => Destination::Logical(destination),
                false if destination == 0xff => Destination::All,
                false => Destination::Physical(destination),
            },
        }
    }
}

/// The controller.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u32,
    /// Levels of the inputs.
    lines: u32,
    table: [Redirection; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        let masked = Redirection(0).with(Redirection::MASKED, true);
        Self { select: 0, id: 0, lines: 0, table: [masked; PINS] }
    }
}

impl IoApic {
    /// Reads a 32-bit register window by its offset.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_register(),
            _ => u32::MAX,
        }
    }

    /// Writes a 32-bit register window. What that causes is in `out`.
    pub fn write(&mut self, offset: u64, value: u32, mut out: impl FnMut(Message)) {
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => self.write_register(value, &mut out),
            EOI => self.end_of_interrupt(value as u8, out),
            _ => {}
        }
    }

    /// The entry and half that the register select names.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(IOREDTBL)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index & 1 != 0))
    }

    fn read_register(&self) -> u32 {
        match (self.select, self.selected_entry()) {
            (_, Some((pin, high))) => (self.table[pin].0 >> if high { 32 } else { 0 }) as u32,
            (IOAPICID | IOAPICARB, _) => self.id,
            (IOAPICVER, _) => VERSION,
            _ => u32::MAX,
        }
    }

    fn write_register(&mut self, value: u32, out: &mut impl FnMut(Message)) {
        let Some((pin, high)) = self.selected_entry() else {
            if self.select == IOAPICID {
                self.id = value & 0x0f00_0000;
            }
            return;
        };
        let old = self.table[pin];
        let written = match high {
            true => old.0 & 0xffff_ffff | u64::from(value) << 32,
            false => old.0 & !0xffff_ffff | u64::from(value),
        };
        let kept = written & !Redirection::READ_ONLY & !Redirection::RESERVED;
        let mut new = Redirection(kept | old.0 & Redirection::READ_ONLY);
        if !new.get(Redirection::LEVEL) {
            new = new.with(Redirection::REMOTE_IRR, false);
        }
        self.table[pin] = new;
        self.service_level(pin, out);
    }

    /// Drives an input.
    pub fn set_line(&mut self, pin: usize, asserted: bool, mut out: impl FnMut(Message)) {
        let Some(entry) = self.table.get(pin).copied() else { return };
        let bit = 1 << pin;
        let rises = asserted && self.lines & bit == 0;
        self.lines = if asserted { self.lines | bit } else { self.lines & !bit };
        if entry.get(Redirection::LEVEL) {
            self.service_level(pin, &mut out);
        } else if rises && !entry.get(Redirection::MASKED) {
            // "Edge-sensitive interrupts signaled on a masked interrupt pin are ignored."
            out(entry.message());
        }
    }

    /// A level-triggered input that is asserted sends one message until it is acknowledged by an EOI.
    fn service_level(&mut self, pin: usize, out: &mut impl FnMut(Message)) {
        let entry = self.table[pin];
        let asserted = self.lines & 1 << pin != 0;
        let waits = entry.get(Redirection::REMOTE_IRR) || entry.get(Redirection::MASKED);
        if asserted && entry.get(Redirection::LEVEL) && !waits {
            self.table[pin] = entry.with(Redirection::REMOTE_IRR, true);
            out(entry.message());
        }
    }

    /// A local APIC's EOI message, or a write to the EOI register.
    pub fn end_of_interrupt(&mut self, vector: u8, mut out: impl FnMut(Message)) {
        for pin in 0..PINS {
            let entry = self.table[pin];
            if entry.get(Redirection::LEVEL) && entry.get(Redirection::VECTOR) == vector {
                self.table[pin] = entry.with(Redirection::REMOTE_IRR, false);
                self.service_level(pin, &mut out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ioapic: &mut IoApic, register: u8, value: u32) -> Vec<Message> {
        let mut sent = Vec::new();
        ioapic.write(IOREGSEL, u32::from(register), |_| unreachable!());
        ioapic.write(IOWIN, value, |message| sent.push(message));
        sent
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, u32::from(register), |_| unreachable!());
        ioapic.read(IOWIN)
    }

    fn set_line(ioapic: &mut IoApic, pin: usize, asserted: bool) -> Vec<u8> {
        let mut sent = Vec::new();
        ioapic.set_line(pin, asserted, |message| sent.push(message.vector));
        sent
    }

    fn end(ioapic: &mut IoApic, vector: u8) -> usize {
        let mut sent = 0;
        ioapic.end_of_interrupt(vector, |_| sent += 1);
        sent
    }

    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;

    #[test]
    fn identification() {
        let mut ioapic = IoApic::default();
        assert_eq!(read(&mut ioapic, IOAPICVER), 0x0017_0020);
        write(&mut ioapic, IOAPICID, u32::MAX);
        assert_eq!(read(&mut ioapic, IOAPICID), 0x0f00_0000);
        assert_eq!(read(&mut ioapic, 0x10), MASKED);
        assert_eq!(read(&mut ioapic, 0x10 + 48), u32::MAX);
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let mut ioapic = IoApic::default();
        write(&mut ioapic, 0x14, 0x31 | MASKED);
        assert_eq!(set_line(&mut ioapic, 2, true), [0; 0]);
        assert_eq!(write(&mut ioapic, 0x14, 0x31), []);
        set_line(&mut ioapic, 2, false);
        assert_eq!(set_line(&mut ioapic, 2, true), [0x31]);
        assert_eq!(set_line(&mut ioapic, 2, true), [0; 0]);
    }

    #[test]
    fn a_level_is_sent_again_after_eoi_while_asserted() {
        let mut ioapic = IoApic::default();
        write(&mut ioapic, 0x22, 0x39 | LEVEL);
        assert_eq!(set_line(&mut ioapic, 9, true), [0x39]);
        assert_eq!(read(&mut ioapic, 0x22), 0x39 | LEVEL | 1 << 14);
        assert_eq!(set_line(&mut ioapic, 9, true), [0; 0]);
        assert_eq!(end(&mut ioapic, 0x38), 0);
        assert_eq!(end(&mut ioapic, 0x39), 1);
        set_line(&mut ioapic, 9, false);
        assert_eq!(end(&mut ioapic, 0x39), 0);
        assert_eq!(read(&mut ioapic, 0x22), 0x39 | LEVEL);
    }

    #[test]
    fn unmasking_an_asserted_level_sends_it() {
        let mut ioapic = IoApic::default();
        write(&mut ioapic, 0x22, 0x39 | LEVEL | MASKED);
        assert_eq!(set_line(&mut ioapic, 9, true), [0; 0]);
        assert_eq!(write(&mut ioapic, 0x22, 0x39 | LEVEL).len(), 1);
    }

    #[test]
    fn the_entry_says_where_to() {
        let mut ioapic = IoApic::default();
        write(&mut ioapic, 0x15, 0x0300_0000);
        write(&mut ioapic, 0x14, 0x131 | 1 << 11);
        let mut sent = None;
        ioapic.set_line(2, true, |message| sent = Some(message));
        let message = sent.expect("a message");
        assert_eq!(message.destination, Destination::Logical(3));
        assert_eq!(message.mode, Mode::LowestPriority);
    }

    #[test]
    fn the_eoi_register_and_the_return_to_edge_clear_remote_irr() {
        let mut ioapic = IoApic::default();
        write(&mut ioapic, 0x22, 0x39 | LEVEL);
        set_line(&mut ioapic, 9, true);
        set_line(&mut ioapic, 9, false);
        ioapic.write(EOI, 0x39, |_| unreachable!());
        assert_eq!(read(&mut ioapic, 0x22), 0x39 | LEVEL);
        set_line(&mut ioapic, 9, true);
        write(&mut ioapic, 0x22, 0x39 | MASKED);
        write(&mut ioapic, 0x22, 0x39 | MASKED | LEVEL);
        assert_eq!(read(&mut ioapic, 0x22), 0x39 | MASKED | LEVEL);
    }

    #[test]
    fn pins_that_do_not_exist_do_nothing() {
        assert_eq!(set_line(&mut IoApic::default(), 24, true), [0; 0]);
    }
}
