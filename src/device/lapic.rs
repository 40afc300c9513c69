//! The local APIC of one processor. SDM Vol. 3, "Advanced Programmable Interrupt Controller (APIC)".
//!
//! What a register write causes outside of this APIC comes back as an [`Effect`]; what reaches the processor
//! other than by a vector waits in [`Signals`] until the run loop takes it.

pub mod base;
pub mod message;
mod register;
pub mod timer;
pub mod vectors;

use super::Nanos;
use super::frequency::Frequency;
use base::{ApicBase, State};
use message::{Message, Mode, Trigger};
pub use register::{Effect, GeneralProtection};
use register::{Errors, Lvt, LvtEntry, Spurious};
use timer::Timer;
use vectors::Vectors;

/// Where the registers are after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// How much memory they take.
pub const SIZE: u64 = 0x1000;
/// Vectors below are illegal in an APIC message. SDM Vol. 3, "Valid Interrupt Vectors".
const FIRST_VECTOR: u8 = 16;

/// Events for the processor that are not interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signals {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// An INIT; when the processor takes it, [`LocalApic::init`] is due. It comes before `start_up`.
    pub init: bool,
    /// A start-up IPI with this vector.
    pub start_up: Option<u8>,
}

impl Signals {
    /// Is there anything to take?
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    id: u32,
    base: ApicBase,
    task_priority: u8,
    logical_destination: u32,
    destination_format: u32,
    spurious: Spurious,
    in_service: Vectors,
    requests: Vectors,
    level: Vectors,
    errors: Errors,
    command: u64,
    lvt: [LvtEntry; Lvt::COUNT],
    timer: Timer,
    lint0: bool,
    signals: Signals,
}

impl LocalApic {
    /// The APIC of processor `id` after reset; its timer counts `clock`.
    #[must_use]
    pub fn new(id: u32, base: ApicBase, clock: Frequency) -> Self {
        Self {
            id,
            base,
            task_priority: 0,
            logical_destination: 0,
            destination_format: u32::MAX,
            spurious: Spurious::default(),
            in_service: Vectors::default(),
            requests: Vectors::default(),
            level: Vectors::default(),
            errors: Errors::default(),
            command: 0,
            lvt: [LvtEntry::default(); Lvt::COUNT],
            timer: Timer::new(clock),
            lint0: false,
            signals: Signals::default(),
        }
    }

    /// INIT: all registers but the ID and IA32_APIC_BASE as after reset.
    /// SDM Vol. 3, "Local APIC State After an INIT Reset ("Wait-for-SIPI" State)".
    pub fn init(&mut self) {
        let (signals, lint0) = (self.signals, self.lint0);
        *self = Self::new(self.id, self.base, self.timer.clock());
        (self.signals, self.lint0) = (signals, lint0);
        if self.base.state() == State::X2Apic {
            self.enter_x2apic();
        }
    }

    /// As firmware leaves the APIC of the processor that boots: enabled, LINT0 the 8259's wire, LINT1 NMI.
    /// SDM Vol. 3, "Virtual Wire Mode" in the MultiProcessor specification's sense.
    pub fn set_virtual_wire(&mut self) {
        self.spurious = self.spurious.with(Spurious::ENABLED, true);
        let wire = |mode: Mode| {
            LvtEntry::default().with(LvtEntry::MASKED, false).with(LvtEntry::DELIVERY_MODE, mode as u8)
        };
        self.lvt[Lvt::Lint0 as usize] = wire(Mode::ExtInt);
        self.lvt[Lvt::Lint1 as usize] = wire(Mode::Nmi);
    }

    /// The APIC ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub fn base(&self) -> ApicBase {
        self.base
    }

    /// WRMSR of IA32_APIC_BASE. SDM Vol. 3, "x2APIC State Transitions".
    ///
    /// # Errors
    /// #GP for a reserved bit or a transition that does not exist.
    pub fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let new = self.base.transition(value)?;
        let (old, to) = (self.base.state(), new.state());
        self.base = new;
        match (old, to) {
            (_, State::Disabled) => self.init(),
            (State::XApic, State::X2Apic) => self.enter_x2apic(),
            _ => {}
        }
        Ok(())
    }

    /// The logical destination register is derived from the ID. SDM Vol. 3, "Deriving Logical x2APIC ID from
    /// the Local x2APIC ID".
    fn enter_x2apic(&mut self) {
        self.logical_destination = (self.id >> 4) << 16 | 1 << (self.id & 0xf);
        self.command &= 0xffff_ffff;
    }

    /// Is this page the one where the registers are, for this processor?
    #[must_use]
    pub fn decodes(&self, address: u64) -> bool {
        self.base.state() == State::XApic && address & !(SIZE - 1) == self.base.address()
    }

    fn is_accepting(&self) -> bool {
        self.base.state() != State::Disabled && self.spurious.get(Spurious::ENABLED)
    }

    /// The task-priority register's value, 8 bits; CR8 is its upper half.
    #[must_use]
    pub fn task_priority(&self) -> u8 {
        self.task_priority
    }

    /// Sets the task-priority register.
    pub fn set_task_priority(&mut self, value: u8) {
        self.task_priority = value;
    }

    /// The processor-priority register. SDM Vol. 3, "Task and Processor Priorities".
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= in_service >> 4 { self.task_priority } else { in_service & 0xf0 }
    }

    /// The vector that interrupts the processor now, if interrupts are enabled there.
    #[must_use]
    pub fn interrupt(&self) -> Option<u8> {
        let vector = self.requests.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The processor takes the interrupt: its vector goes from IRR to ISR.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.interrupt()?;
        self.requests.clear(vector);
        self.in_service.set(vector);
        Some(vector)
    }

    /// A write to the EOI register. Returns the vector if it was level-triggered: I/O APICs must hear of it.
    pub fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.in_service.highest()?;
        self.in_service.clear(vector);
        self.level.is_set(vector).then_some(vector)
    }

    /// Does the 8259's INTR reach the processor through this APIC? Without one it does so directly.
    #[must_use]
    pub fn passes_external_interrupts(&self) -> bool {
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        match self.base.state() {
            State::Disabled => self.base.is_bootstrap(),
            State::XApic | State::X2Apic => lint0.is_live() && lint0.mode() == Mode::ExtInt,
        }
    }

    /// Drives LINT0, the 8259's INTR. ExtINT mode passes the level; other modes act on its rise.
    pub fn set_lint0(&mut self, high: bool) {
        let rises = high && !self.lint0;
        self.lint0 = high;
        if rises {
            self.raise(Lvt::Lint0);
        }
    }

    /// An event of the local vector table.
    fn raise(&mut self, source: Lvt) {
        let entry = self.lvt[source as usize];
        if entry.is_live() && entry.mode() != Mode::ExtInt {
            self.accept(entry.mode(), entry.get(LvtEntry::VECTOR), Trigger::Edge);
        }
    }

    /// A message for this APIC. SDM Vol. 3, "Interrupt Acceptance for Fixed Interrupts" and its neighbours.
    pub fn accept(&mut self, mode: Mode, vector: u8, trigger: Trigger) {
        if self.base.state() == State::Disabled {
            return;
        }
        match mode {
            Mode::Fixed | Mode::LowestPriority => self.accept_vector(vector, trigger),
            Mode::Nmi => self.signals.nmi = true,
            Mode::Init => self.signals = Signals { init: true, start_up: None, ..self.signals },
            Mode::StartUp => self.signals.start_up = Some(vector),
            // There is no system-management mode, and INTR is wired to LINT0 alone.
            Mode::Smi | Mode::ExtInt | Mode::Reserved => {}
        }
    }

    fn accept_vector(&mut self, vector: u8, trigger: Trigger) {
        if !self.is_accepting() {
            return;
        }
        if vector < FIRST_VECTOR {
            return self.report(Errors::RECEIVE_ILLEGAL_VECTOR);
        }
        self.requests.set(vector);
        match trigger {
            Trigger::Edge => self.level.clear(vector),
            Trigger::Level => self.level.set(vector),
        }
    }

    /// Records an error and raises the error interrupt. SDM Vol. 3, "Error Handling".
    fn report(&mut self, error: vmcs12::bits::Bits<Errors, bool>) {
        let is_new = self.errors.record(error);
        let entry = self.lvt[Lvt::Error as usize];
        // An illegal vector in the error entry itself is recorded, and that is all.
        if is_new && entry.is_live() && entry.get(LvtEntry::VECTOR) >= FIRST_VECTOR {
            self.raise(Lvt::Error);
        }
    }

    /// What waits for the run loop; it is then gone.
    pub fn take_signals(&mut self) -> Signals {
        std::mem::take(&mut self.signals)
    }

    /// What waits for the run loop.
    #[must_use]
    pub fn signals(&self) -> Signals {
        self.signals
    }

    /// When the timer wants to be ticked.
    #[must_use]
    pub fn next_event(&self) -> Option<Nanos> {
        if self.lvt[Lvt::Timer as usize].is_live() { self.timer.next_expiry() } else { None }
    }

    /// Raises the timer interrupt if its time has come.
    pub fn tick(&mut self, now: Nanos) {
        if self.timer.expire(now) {
            self.raise(Lvt::Timer);
        }
    }

    /// IA32_TSC_DEADLINE: the deadline that is armed, in TSC units, or 0.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.deadline()
    }

    /// WRMSR of IA32_TSC_DEADLINE: 0 disarms; `at` is the time at which the TSC reaches it. Ignored unless the
    /// timer is in TSC-deadline mode. SDM Vol. 3, "TSC-Deadline Mode".
    pub fn set_tsc_deadline(&mut self, tsc: u64, at: Nanos, now: Nanos) {
        self.tick(now);
        self.timer.set_deadline(tsc, at);
        self.tick(now);
    }

    /// The priority by which lowest-priority delivery chooses.
    fn arbitration(&self) -> (u8, u32) {
        (self.processor_priority(), self.id)
    }
}

/// Delivers a message to those of `apics` that it is addressed to.
pub fn deliver(apics: &mut [LocalApic], message: Message) {
    if message.mode != Mode::LowestPriority {
        for (index, apic) in apics.iter_mut().enumerate() {
            if apic.is_addressed(index, message.destination) {
                apic.accept(message.mode, message.vector, message.trigger);
            }
        }
        return;
    }
    let chosen = apics
        .iter_mut()
        .enumerate()
        .filter(|(index, apic)| apic.is_accepting() && apic.is_addressed(*index, message.destination))
        .map(|(_, apic)| apic)
        .min_by_key(|apic| apic.arbitration());
    if let Some(apic) = chosen {
        apic.accept(message.mode, message.vector, message.trigger);
    }
}

#[cfg(test)]
mod tests;
