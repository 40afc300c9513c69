//! Exceptions and the delivery of events. SDM Vol. 3, "Interrupt and Exception Handling".

pub(crate) mod debug;
pub(crate) mod frame;
mod gate;

use crate::mmu::Fault;
use crate::state::Cpu;
use vmcs12::arch::event::{EventKind, Exception, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::exit::qualification::{EptViolation, TaskSwitch};
use vmcs12::exit::{Cause, Reason};
use vmcs12::field::table::{EXIT_QUALIFICATION, PAGE_FAULT_ERROR_CODE_MASK, PAGE_FAULT_ERROR_CODE_MATCH};

/// Deliveries without an instruction in between that count as none.
const LONGEST_STALL: u32 = 4096;

/// An event to be delivered through the IDT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub kind: EventKind,
    pub vector: u8,
    /// What is pushed; never in real-address mode.
    pub error_code: Option<u32>,
    /// The return pointer that is pushed.
    pub return_rip: u64,
    /// Of the instruction that is the event, if one is.
    pub instruction_length: u32,
}

impl Delivery {
    /// A hardware exception.
    pub fn exception(vector: u8, error_code: Option<u32>, return_rip: u64) -> Self {
        Self { kind: EventKind::HardwareException, vector, error_code, return_rip, instruction_length: 0 }
    }

    /// Is it an instruction that the gate's DPL must allow? SDM Vol. 3, "Protection of Exception- and
    /// Interrupt-Handler Procedures".
    fn is_software(&self) -> bool {
        matches!(self.kind, EventKind::SoftwareInterrupt | EventKind::SoftwareException)
    }

    /// EXT of the error code of a fault met while this event is delivered. SDM Vol. 3, "Error Code".
    fn ext(&self) -> u32 {
        u32::from(!self.is_software())
    }

    /// The event as the VMCS records it.
    fn recorded(&self) -> RecordedEvent {
        RecordedEvent::new(self.kind, self.vector, self.error_code.is_some())
    }
}

/// How the delivery of an event ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Delivered,
    /// An exception met on the way was delivered instead.
    Replaced,
    Exit(Cause),
}

/// Why an event was not delivered.
enum Interruption {
    Fault(Fault),
    /// A task gate led to this TSS.
    Task(u16),
}

impl<T: Into<Fault>> From<T> for Interruption {
    fn from(fault: T) -> Self {
        Self::Fault(fault.into())
    }
}

/// SDM Vol. 3, "Interrupt 8—Double Fault Exception (#DF)", the table of classes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(kind: EventKind, vector: u8) -> Class {
    match (kind, vector) {
        (EventKind::HardwareException, vector::DF) => Class::DoubleFault,
        (EventKind::HardwareException, vector::PF) => Class::PageFault,
        (
            EventKind::HardwareException,
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP,
        ) => Class::Contributory,
        _ => Class::Benign,
    }
}

/// What becomes of an exception met while an event is delivered.
enum Combined {
    Serial,
    Double,
    Triple,
}

fn combine(first: Class, second: Class) -> Combined {
    match (first, second) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => Combined::Triple,
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => Combined::Double,
        _ => Combined::Serial,
    }
}

impl Cpu {
    /// The instruction at RIP ends in an exception: it exits, or is delivered.
    pub(crate) fn raise_exception(&mut self, exception: Exception) -> Option<Cause> {
        let unblocking = std::mem::take(&mut self.nmi_unblocking);
        // RF of the image: the instruction restarts without meeting its instruction breakpoint again.
        self.rflags |= rflags::RF;
        let exception = self.visible(exception);
        if self.intercepts(exception) {
            return Some(self.exception_exit(exception, unblocking, 0));
        }
        self.note_exception(exception);
        self.deliver(Delivery::exception(exception.vector, exception.error_code, self.rip))
    }

    /// Real-address mode knows no error codes.
    fn visible(&self, exception: Exception) -> Exception {
        if self.protected() { exception } else { Exception { error_code: None, ..exception } }
    }

    /// SDM Vol. 3, "Exception Bitmap".
    pub(crate) fn intercepts(&mut self, exception: Exception) -> bool {
        let wanted = self.controls.exception_bitmap >> exception.vector & 1 != 0;
        if exception.vector != vector::PF {
            return wanted;
        }
        let (mask, value) =
            (self.vmcs().get(PAGE_FAULT_ERROR_CODE_MASK), self.vmcs().get(PAGE_FAULT_ERROR_CODE_MATCH));
        let matches = exception.error_code.unwrap_or(0) & mask == value;
        wanted == matches
    }

    fn exception_exit(&mut self, exception: Exception, unblocking: bool, instruction_length: u32) -> Cause {
        let code = exception.error_code;
        let event = RecordedEvent::new(EventKind::HardwareException, exception.vector, code.is_some())
            .with(RecordedEvent::NMI_UNBLOCKING, unblocking);
        let reason = Reason::ExceptionOrNmi;
        self.record_event_exit(reason, exception.address, event, code.unwrap_or(0), instruction_length);
        Cause::Vm(reason)
    }

    /// CR2, DR6 and DR7 as an exception that is delivered leaves them.
    fn note_exception(&mut self, exception: Exception) {
        match exception.vector {
            vector::PF => self.state().cr2 = exception.address,
            vector::DB => self.note_debug_exception(exception.address),
            _ => {}
        }
    }

    /// Delivers an event; a VM exit that this takes has been recorded.
    pub(crate) fn deliver(&mut self, event: Delivery) -> Option<Cause> {
        self.note_delivery();
        match self.deliver_to_end(event) {
            Outcome::Delivered | Outcome::Replaced => None,
            Outcome::Exit(cause) => Some(cause),
        }
    }

    /// A handler whose own first instruction faults can go on for ever without retiring one. Deviation: then each
    /// run of deliveries counts as an instruction, so that the budget ends.
    fn note_delivery(&mut self) {
        let (retired, deliveries) = self.stall;
        self.stall = if retired != self.retired {
            (self.retired, 0)
        } else if deliveries < LONGEST_STALL {
            (retired, deliveries + 1)
        } else {
            self.retired += 1;
            (self.retired, 0)
        };
    }

    /// Delivers an event, or what comes of the exceptions met on the way.
    pub(crate) fn deliver_to_end(&mut self, event: Delivery) -> Outcome {
        if event.kind == EventKind::Nmi {
            self.nmi_blocked = true;
        }
        if !event.is_software() {
            // What MOV SS held back is lost, but for a software interrupt, whose handler meets it.
            self.pending_debug = 0;
        }
        (self.sti_shadow, self.mov_ss_shadow) = (u64::MAX, u64::MAX);
        let mut event = event;
        let mut outcome = Outcome::Delivered;
        loop {
            let fault = match self.deliver_once(&event) {
                Ok(()) => return outcome,
                Err(Interruption::Task(selector)) => return Outcome::Exit(self.task_exit(&event, selector)),
                Err(Interruption::Fault(fault)) => fault,
            };
            match self.replace(&event, fault) {
                Ok(next) => event = next,
                Err(cause) => return Outcome::Exit(cause),
            }
            outcome = Outcome::Replaced;
        }
    }

    /// The event to deliver in the place of one whose delivery met a fault, or the exit.
    fn replace(&mut self, event: &Delivery, fault: Fault) -> Result<Delivery, Cause> {
        let Fault::Exception(exception) = fault else {
            let cause = self.exit_ept(fault);
            self.record_original(event);
            return Err(cause);
        };
        let exception = self.visible(exception);
        let second = class(EventKind::HardwareException, exception.vector);
        let next = match combine(class(event.kind, event.vector), second) {
            Combined::Triple => return Err(self.triple_fault()),
            Combined::Double => {
                self.visible(Exception { error_code: Some(0), ..Exception::plain(vector::DF) })
            }
            Combined::Serial => exception,
        };
        if self.intercepts(next) {
            let cause = self.exception_exit(next, false, event.instruction_length);
            if next.vector != vector::DF {
                self.record_original(event);
            }
            return Err(cause);
        }
        // A page fault that ends in #DF has set CR2 all the same.
        self.note_exception(exception);
        Ok(Delivery::exception(next.vector, next.error_code, self.rip))
    }

    fn triple_fault(&mut self) -> Cause {
        self.record_event_exit(Reason::TripleFault, 0, RecordedEvent::default(), 0, 0);
        Cause::Vm(Reason::TripleFault)
    }

    /// SDM Vol. 3, "Treatment of Task Switches".
    fn task_exit(&mut self, event: &Delivery, selector: u16) -> Cause {
        let qualification =
            TaskSwitch::default().with(TaskSwitch::SELECTOR, selector).with(TaskSwitch::SOURCE, 3);
        let length = event.instruction_length;
        self.record_event_exit(Reason::TaskSwitch, qualification.0, RecordedEvent::default(), 0, length);
        self.record_original(event);
        Cause::Vm(Reason::TaskSwitch)
    }

    fn record_original(&mut self, event: &Delivery) {
        self.record_original_event(event.recorded(), event.error_code.unwrap_or(0), event.instruction_length);
    }

    /// An EPT violation of an IRET that ended NMI blocking says so in its qualification.
    pub(crate) fn record_nmi_unblocking(&mut self, fault: Fault) {
        if std::mem::take(&mut self.nmi_unblocking) && matches!(fault, Fault::EptViolation { .. }) {
            let qualification = self.vmcs().get(EXIT_QUALIFICATION) | EptViolation::NMI_UNBLOCKING.mask();
            self.vmcs().set(EXIT_QUALIFICATION, qualification);
        }
    }
}
