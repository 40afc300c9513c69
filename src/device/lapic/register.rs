//! The APIC's registers, by memory (xAPIC) and by MSR (x2APIC). SDM Vol. 3, "Local APIC Register Address Map",
//! "x2APIC Register Address Space".

use super::base::State;
use super::message::{Destination, Message, Mode, Trigger};
use super::timer::Run;
use super::vectors::Vectors;
use super::{FIRST_VECTOR, LocalApic};
use crate::device::Nanos;
use vmcs12::bits;
use vmcs12::bits::Bits;

/// The MSR of the x2APIC register 0.
const FIRST_MSR: u32 = 0x800;
/// Bytes from one register to the next in memory.
const STRIDE: u64 = 16;

/// Integrated APIC with six LVT entries.
const VERSION: u32 = 0x14 | (Lvt::COUNT as u32 - 1) << 16;

/// #GP(0): the access is not one that the architecture defines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// What a register write causes outside of the APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// The EOI of a level-triggered vector goes to the I/O APICs.
    EndOfLevel(u8),
    /// A message goes to other processors, or to this one.
    Send(Message),
}

/// Entries of the local vector table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    /// How many there are.
    pub const COUNT: usize = 6;
}

bits! {
    /// An entry of the local vector table. SDM Vol. 3, "Local Vector Table".
    pub struct LvtBits: u32 {
        VECTOR           7:0   u8;
        DELIVERY_MODE   10:8   u8;
        DELIVERY_STATUS 12     bool;
        ACTIVE_LOW      13     bool;
        REMOTE_IRR      14     bool;
        LEVEL           15     bool;
        MASKED          16     bool;
        TIMER_MODE      18:17  u8;
    }
}

/// An entry of the local vector table, masked after reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LvtEntry(LvtBits);

impl Default for LvtEntry {
    fn default() -> Self {
        Self(LvtBits(0).with(LvtBits::MASKED, true))
    }
}

impl LvtEntry {
    pub const VECTOR: Bits<LvtBits, u8> = LvtBits::VECTOR;
    pub const DELIVERY_MODE: Bits<LvtBits, u8> = LvtBits::DELIVERY_MODE;
    pub const MASKED: Bits<LvtBits, bool> = LvtBits::MASKED;

    pub fn get<T: vmcs12::bits::BitValue>(self, field: Bits<LvtBits, T>) -> T {
        self.0.get(field)
    }

    pub fn with<T: vmcs12::bits::BitValue>(self, field: Bits<LvtBits, T>, value: T) -> Self {
        Self(self.0.with(field, value))
    }

    pub fn is_live(self) -> bool {
        !self.get(Self::MASKED)
    }

    pub fn mode(self) -> Mode {
        Mode::from_bits(self.get(Self::DELIVERY_MODE))
    }
}

bits! {
    /// Spurious-interrupt vector register.
    pub struct SpuriousBits: u32 {
        VECTOR  7:0 u8;
        ENABLED 8   bool;
        FOCUS   9   bool;
    }
}

/// The spurious-interrupt vector register, FFH after reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spurious(SpuriousBits);

impl Default for Spurious {
    fn default() -> Self {
        Self(SpuriousBits(0xff))
    }
}

impl Spurious {
    pub const ENABLED: Bits<SpuriousBits, bool> = SpuriousBits::ENABLED;

    pub fn get<T: vmcs12::bits::BitValue>(self, field: Bits<SpuriousBits, T>) -> T {
        self.0.get(field)
    }

    pub fn with<T: vmcs12::bits::BitValue>(self, field: Bits<SpuriousBits, T>, value: T) -> Self {
        Self(self.0.with(field, value))
    }
}

/// The error status register: what has been recorded, and what the last write made visible.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Errors {
    recorded: u32,
    visible: u32,
}

impl Errors {
    pub const SEND_ILLEGAL_VECTOR: Bits<Self, bool> = Bits::new(5, 5);
    pub const RECEIVE_ILLEGAL_VECTOR: Bits<Self, bool> = Bits::new(6, 6);
    pub const ILLEGAL_REGISTER: Bits<Self, bool> = Bits::new(7, 7);

    /// Records an error; is it one that had not been recorded?
    pub fn record(&mut self, error: Bits<Self, bool>) -> bool {
        let old = self.recorded;
        self.recorded |= error.mask() as u32;
        self.recorded != old
    }

    /// "A write (of any value) to the ESR must be done just prior to reading the ESR to update the register."
    fn update(&mut self) {
        self.visible = std::mem::take(&mut self.recorded);
    }
}

bits! {
    /// Interrupt command register. SDM Vol. 3, "Interrupt Command Register (ICR)".
    pub struct Command: u64 {
        VECTOR           7:0   u8;
        DELIVERY_MODE   10:8   u8;
        LOGICAL         11     bool;
        DELIVERY_STATUS 12     bool;
        ASSERT          14     bool;
        LEVEL           15     bool;
        SHORTHAND       19:18  u8;
        DESTINATION     63:32  u32;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Id,
    Version,
    TaskPriority,
    ArbitrationPriority,
    ProcessorPriority,
    EndOfInterrupt,
    RemoteRead,
    LogicalDestination,
    DestinationFormat,
    Spurious,
    InService(u8),
    TriggerMode(u8),
    Requests(u8),
    Errors,
    Command,
    CommandHigh,
    Entry(Lvt),
    InitialCount,
    CurrentCount,
    Divide,
    SelfIpi,
}

/// How a register can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    No,
    Read,
    Write,
    ReadWrite,
}

impl Access {
    fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }
    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

struct Row {
    index: u8,
    register: Register,
    xapic: Access,
    x2apic: Access,
    /// Bits that can be written; in x2APIC mode the others must be 0.
    writable: u64,
}

const fn row(index: u8, register: Register, xapic: Access, x2apic: Access, writable: u64) -> Row {
    Row { index, register, xapic, x2apic, writable }
}

use Access::{No, Read, ReadWrite, Write};
use Register as R;

const LINT: u64 = 0x1_f7ff;
const COMMAND: u64 = 0xffff_ffff_000c_dfff;

/// By index: the offset in memory is 16 × index, the MSR 800H + index.
#[rustfmt::skip]
const REGISTERS: &[Row] = &[
    //   index  register                       xAPIC      x2APIC     writable
    row(0x02, R::Id,                           ReadWrite, Read,      0),
    row(0x03, R::Version,                      Read,      Read,      0),
    row(0x08, R::TaskPriority,                 ReadWrite, ReadWrite, 0xff),
    row(0x09, R::ArbitrationPriority,          Read,      No,        0),
    row(0x0a, R::ProcessorPriority,            Read,      Read,      0),
    row(0x0b, R::EndOfInterrupt,               Write,     Write,     0),
    row(0x0c, R::RemoteRead,                   Read,      No,        0),
    row(0x0d, R::LogicalDestination,           ReadWrite, Read,      0xff00_0000),
    row(0x0e, R::DestinationFormat,            ReadWrite, No,        0xf000_0000),
    row(0x0f, R::Spurious,                     ReadWrite, ReadWrite, 0x3ff),
    row(0x10, R::InService(0),                 Read,      Read,      0),
    row(0x11, R::InService(1),                 Read,      Read,      0),
    row(0x12, R::InService(2),                 Read,      Read,      0),
    row(0x13, R::InService(3),                 Read,      Read,      0),
    row(0x14, R::InService(4),                 Read,      Read,      0),
    row(0x15, R::InService(5),                 Read,      Read,      0),
    row(0x16, R::InService(6),                 Read,      Read,      0),
    row(0x17, R::InService(7),                 Read,      Read,      0),
    row(0x18, R::TriggerMode(0),               Read,      Read,      0),
    row(0x19, R::TriggerMode(1),               Read,      Read,      0),
    row(0x1a, R::TriggerMode(2),               Read,      Read,      0),
    row(0x1b, R::TriggerMode(3),               Read,      Read,      0),
    row(0x1c, R::TriggerMode(4),               Read,      Read,      0),
    row(0x1d, R::TriggerMode(5),               Read,      Read,      0),
    row(0x1e, R::TriggerMode(6),               Read,      Read,      0),
    row(0x1f, R::TriggerMode(7),               Read,      Read,      0),
    row(0x20, R::Requests(0),                  Read,      Read,      0),
    row(0x21, R::Requests(1),                  Read,      Read,      0),
    row(0x22, R::Requests(2),                  Read,      Read,      0),
    row(0x23, R::Requests(3),                  Read,      Read,      0),
    row(0x24, R::Requests(4),                  Read,      Read,      0),
    row(0x25, R::Requests(5),                  Read,      Read,      0),
    row(0x26, R::Requests(6),                  Read,      Read,      0),
    row(0x27, R::Requests(7),                  Read,      Read,      0),
    row(0x28, R::Errors,                       ReadWrite, ReadWrite, 0),
    row(0x30, R::Command,                      ReadWrite, ReadWrite, COMMAND),
    row(0x31, R::CommandHigh,                  ReadWrite, No,        0xff00_0000),
    row(0x32, R::Entry(Lvt::Timer),            ReadWrite, ReadWrite, 0x7_10ff),
    row(0x33, R::Entry(Lvt::Thermal),          ReadWrite, ReadWrite, 0x1_17ff),
    row(0x34, R::Entry(Lvt::Performance),      ReadWrite, ReadWrite, 0x1_17ff),
    row(0x35, R::Entry(Lvt::Lint0),            ReadWrite, ReadWrite, LINT),
    row(0x36, R::Entry(Lvt::Lint1),            ReadWrite, ReadWrite, LINT),
    row(0x37, R::Entry(Lvt::Error),            ReadWrite, ReadWrite, 0x1_10ff),
    row(0x38, R::InitialCount,                 ReadWrite, ReadWrite, 0xffff_ffff),
    row(0x39, R::CurrentCount,                 Read,      Read,      0),
    row(0x3e, R::Divide,                       ReadWrite, ReadWrite, 0xb),
    row(0x3f, R::SelfIpi,                      No,        Write,     0xff),
];

fn find(index: u64) -> Option<&'static Row> {
    let index = u8::try_from(index).ok()?;
    REGISTERS.binary_search_by_key(&index, |row| row.index).ok().map(|at| &REGISTERS[at])
}

impl LocalApic {
    /// Reads from the register page. Aligned 32-bit accesses are architectural; a narrower or misaligned one
    /// within a register gets its part, beyond a register zeros.
    pub fn read_memory(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        let within = offset % STRIDE;
        if within >= 4 {
            return 0;
        }
        let Some(row) = find(offset / STRIDE).filter(|row| row.xapic.reads()) else {
            self.report(Errors::ILLEGAL_REGISTER);
            return 0;
        };
        let value = self.read_register(row.register, now) & 0xffff_ffff;
        value >> (8 * within) & crate::device::all_ones(size)
    }

    /// Writes to the register page. Only aligned accesses of at least 32 bits write.
    pub fn write_memory(&mut self, offset: u64, size: u8, value: u64, index: usize, now: Nanos) -> Effect {
        if !offset.is_multiple_of(STRIDE) || size < 4 {
            return Effect::None;
        }
        match find(offset / STRIDE).filter(|row| row.xapic.writes()) {
            Some(row) => {
                let value = value & row.writable & 0xffff_ffff;
                self.write_register(row.register, value, index, now)
            }
            None => {
                self.report(Errors::ILLEGAL_REGISTER);
                Effect::None
            }
        }
    }

    /// RDMSR of 800H to 8FFH.
    ///
    /// # Errors
    /// #GP outside of x2APIC mode, for a register that does not exist or cannot be read.
    pub fn read_msr(&mut self, msr: u32, now: Nanos) -> Result<u64, GeneralProtection> {
        let row = self.x2apic_row(msr)?;
        if !row.x2apic.reads() {
            return Err(GeneralProtection);
        }
        Ok(self.read_register(row.register, now))
    }

    /// WRMSR of 800H to 8FFH by processor `index`.
    ///
    /// # Errors
    /// #GP outside of x2APIC mode, for a register that does not exist or cannot be written, and for reserved bits.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        index: usize,
        now: Nanos,
    ) -> Result<Effect, GeneralProtection> {
        let row = self.x2apic_row(msr)?;
        if !row.x2apic.writes() || value & !row.writable != 0 {
            return Err(GeneralProtection);
        }
        Ok(self.write_register(row.register, value, index, now))
    }

    fn x2apic_row(&self, msr: u32) -> Result<&'static Row, GeneralProtection> {
        if self.base.state() != State::X2Apic {
            return Err(GeneralProtection);
        }
        msr.checked_sub(FIRST_MSR).and_then(|index| find(u64::from(index))).ok_or(GeneralProtection)
    }

    fn read_register(&mut self, register: Register, now: Nanos) -> u64 {
        let vectors = |set: &Vectors, n: u8| set.register(n);
        u64::from(match register {
            Register::Id if self.base.state() == State::X2Apic => self.id,
            Register::Id => self.id << 24,
            Register::Version => VERSION,
            Register::TaskPriority => u32::from(self.task_priority),
            Register::ArbitrationPriority | Register::ProcessorPriority => {
                u32::from(self.processor_priority())
            }
            Register::RemoteRead | Register::EndOfInterrupt | Register::SelfIpi => 0,
            Register::LogicalDestination => self.logical_destination,
            Register::DestinationFormat => self.destination_format,
            Register::Spurious => self.spurious.0.0,
            Register::InService(n) => vectors(&self.in_service, n),
            Register::TriggerMode(n) => vectors(&self.level, n),
            Register::Requests(n) => vectors(&self.requests, n),
            Register::Errors => self.errors.visible,
            Register::Command => return self.command,
            Register::CommandHigh => (self.command >> 32) as u32,
            Register::Entry(entry) => self.lvt[entry as usize].0.0,
            Register::InitialCount => self.timer.initial(),
            Register::CurrentCount => self.timer.current(now),
            Register::Divide => self.timer.divide(),
        })
    }

    fn write_register(&mut self, register: Register, value: u64, index: usize, now: Nanos) -> Effect {
        let low = value as u32;
        match register {
            Register::TaskPriority => self.task_priority = low as u8,
            Register::EndOfInterrupt => {
                return self.end_of_interrupt().map_or(Effect::None, Effect::EndOfLevel);
            }
            Register::LogicalDestination => self.logical_destination = low,
            // "Bits 0 through 27 are reserved to 1."
            Register::DestinationFormat => self.destination_format = low | 0x0fff_ffff,
            Register::Spurious => self.write_spurious(low),
            Register::Errors => self.errors.update(),
            Register::Command => return self.write_command(value, index),
            Register::CommandHigh => self.command = self.command & 0xffff_ffff | value << 32,
            Register::Entry(entry) => self.write_entry(entry, low, now),
            Register::InitialCount => {
                self.tick(now);
                self.timer.set_initial(low, now);
            }
            Register::Divide => {
                self.tick(now);
                self.timer.set_divide(low, now);
            }
            Register::SelfIpi => {
                return self.send(Command(value & 0xff), Destination::Processor(index));
            }
            // On current processors the ID cannot be changed; the others cannot be written.
            Register::Id
            | Register::Version
            | Register::ArbitrationPriority
            | Register::ProcessorPriority
            | Register::RemoteRead
            | Register::InService(_)
            | Register::TriggerMode(_)
            | Register::Requests(_)
            | Register::CurrentCount => {}
        }
        Effect::None
    }

    /// Disabling by software masks every LVT entry. SDM Vol. 3, "Local APIC State After It Has Been Software Disabled".
    fn write_spurious(&mut self, value: u32) {
        self.spurious = Spurious(SpuriousBits(value));
        if !self.spurious.get(Spurious::ENABLED) {
            for entry in &mut self.lvt {
                *entry = entry.with(LvtEntry::MASKED, true);
            }
        }
    }

    fn write_entry(&mut self, which: Lvt, value: u32, now: Nanos) {
        self.tick(now);
        let read_only = LvtBits::DELIVERY_STATUS.mask() | LvtBits::REMOTE_IRR.mask();
        let mut entry = LvtEntry(LvtBits(value & !(read_only as u32)));
        if !self.spurious.get(Spurious::ENABLED) {
            entry = entry.with(LvtEntry::MASKED, true);
        }
        self.lvt[which as usize] = entry;
        if which == Lvt::Timer {
            self.timer.set_run(timer_run(entry), now);
        }
    }

    fn write_command(&mut self, value: u64, index: usize) -> Effect {
        let high = match self.base.state() {
            State::X2Apic => value & !0xffff_ffff,
            State::XApic | State::Disabled => self.command & !0xffff_ffff,
        };
        let command = Command(high | value & 0xffff_ffff).with(Command::DELIVERY_STATUS, false);
        self.command = command.0;
        let destination = self.destination(command, index);
        self.send(command, destination)
    }

    fn destination(&self, command: Command, index: usize) -> Destination {
        let field: u32 = command.get(Command::DESTINATION);
        let id = if self.base.state() == State::X2Apic { field } else { field >> 24 };
        match command.get(Command::SHORTHAND) {
            0 if command.get(Command::LOGICAL) => Destination::Logical(id),
            0 => Destination::Physical(id),
            1 => Destination::Processor(index),
            2 => Destination::All,
            _ => Destination::AllBut(index),
        }
    }

    fn send(&mut self, command: Command, destination: Destination) -> Effect {
        let mode = Mode::from_bits(command.get(Command::DELIVERY_MODE));
        let vector: u8 = command.get(Command::VECTOR);
        let carries_vector = matches!(mode, Mode::Fixed | Mode::LowestPriority);
        if carries_vector && vector < FIRST_VECTOR {
            self.report(Errors::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        // INIT level de-assert only ever synchronised arbitration IDs.
        let is_deassert = mode == Mode::Init && command.get(Command::LEVEL) && !command.get(Command::ASSERT);
        if is_deassert {
            return Effect::None;
        }
        // "Pentium 4 and Intel Xeon processors ignore the trigger mode for IPIs": they are edge-triggered.
        Effect::Send(Message { vector, mode, trigger: Trigger::Edge, destination })
    }
}

fn timer_run(entry: LvtEntry) -> Run {
    match entry.get(LvtBits::TIMER_MODE) {
        1 => Run::Periodic,
        2 => Run::TscDeadline,
        _ => Run::OneShot,
    }
}

const _: () = {
    let mut i = 1;
    while i < REGISTERS.len() {
        assert!(REGISTERS[i - 1].index < REGISTERS[i].index);
        i += 1;
    }
};
