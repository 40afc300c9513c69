//! INT n, INT3, INTO, INT1, BOUND and the undefined instructions.
//! SDM Vol. 2, "INT n/INTO/INT3/INT1—Call to Interrupt Procedure", "BOUND—Check Array Index Against Bounds".

use super::{Flow, Step, finish, general_protection, handler, undefined};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::fault::{Delivery, Outcome};
use crate::interpret::operand::register;
use crate::state::{Cpu, Stop};
use vmcs12::arch::event::{EventKind, Exception, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::exit::{Cause, Reason};

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::{Code, Mnemonic::*};
    Some(Selected::end(match d.inst.mnemonic() {
        Int => {
            op.imm = u64::from(d.inst.immediate8());
            int_n
        }
        Int3 => int3,
        Into => into,
        Int1 => int1,
        Bound => {
            op.dst = register_offset(d.inst.op0_register());
            let bound =
                if d.inst.code() == Code::Bound_r16_m1616 { handler!(bound_16) } else { handler!(bound_32) };
            return Some(Selected::next(bound));
        }
        Ud0 | Ud1 | Ud2 => handler!(always_undefined),
        _ => return None,
    }))
}

fn always_undefined(_: &mut Cpu, _: &Op) -> Step {
    undefined()
}

unsafe fn int_n(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let vector = unsafe { (*op).imm } as u8;
    if cpu.virtual_8086() && cpu.iopl() < 3 {
        // SAFETY: as above.
        return unsafe { finish(cpu, op, general_protection()) };
    }
    cpu.deliver_software(op, EventKind::SoftwareInterrupt, vector)
}

unsafe fn int3(cpu: &mut Cpu, op: *const Op) -> *const Op {
    cpu.software_exception(op, EventKind::SoftwareException, vector::BP)
}

unsafe fn int1(cpu: &mut Cpu, op: *const Op) -> *const Op {
    cpu.software_exception(op, EventKind::PrivilegedSoftwareException, vector::DB)
}

unsafe fn into(cpu: &mut Cpu, op: *const Op) -> *const Op {
    if cpu.status.overflow() {
        cpu.software_exception(op, EventKind::SoftwareException, vector::OF)
    } else {
        cpu.leave_after(op)
    }
}

impl Cpu {
    /// INT3, INTO and INT1 heed the exception bitmap; INT n does not.
    fn software_exception(&mut self, op: *const Op, kind: EventKind, vector: u8) -> *const Op {
        if self.controls.exception_bitmap >> vector & 1 == 0 {
            return self.deliver_software(op, kind, vector);
        }
        self.stop_at(op);
        // SAFETY: handlers pass the operation that they run.
        let length = u32::from(unsafe { (*op).len });
        let event = RecordedEvent::new(kind, vector, false);
        self.record_event_exit(Reason::ExceptionOrNmi, 0, event, 0, length);
        self.stop = Stop::Exit(Cause::Vm(Reason::ExceptionOrNmi));
        std::ptr::null()
    }

    /// Delivers the event that an instruction is; the instruction retires with it.
    fn deliver_software(&mut self, op: *const Op, kind: EventKind, vector: u8) -> *const Op {
        self.stop_at(op);
        // SAFETY: handlers pass the operation that they run.
        let op = unsafe { &*op };
        let (return_rip, instruction_length) = (self.next_rip(op), u32::from(op.len));
        let stepping = self.rflags & rflags::TF != 0;
        match self.deliver_to_end(Delivery { kind, vector, error_code: None, return_rip, instruction_length })
        {
            Outcome::Delivered => {
                self.retired += 1;
                self.trap_suppressed = stepping;
            }
            Outcome::Replaced => {}
            Outcome::Exit(cause) => self.stop = Stop::Exit(cause),
        }
        std::ptr::null()
    }
}

fn bound_16(cpu: &mut Cpu, op: &Op) -> Step {
    let index = register::<u16>(cpu, op.dst) as i16;
    let (low, high) = (cpu.load_operand::<u16>(op, 0)? as i16, cpu.load_operand::<u16>(op, 2)? as i16);
    within(index >= low && index <= high)
}

fn bound_32(cpu: &mut Cpu, op: &Op) -> Step {
    let index = register::<u32>(cpu, op.dst) as i32;
    let (low, high) = (cpu.load_operand::<u32>(op, 0)? as i32, cpu.load_operand::<u32>(op, 4)? as i32);
    within(index >= low && index <= high)
}

fn within(inside: bool) -> Step {
    if inside { Ok(Flow::Next) } else { Err(Exception::plain(vector::BR).into()) }
}
