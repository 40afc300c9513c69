//! VMX instructions of L1. SDM Vol. 3, "VMX Instruction Reference". Each handler takes its steps in the manual's
//! order: what may fail comes first, and nothing has changed when it does.

mod access;
mod entry;
mod invalidate;
mod operand;
mod pointer;
mod vmxon;

pub(crate) use access::{Named, is_writable};
pub use vmxon::feature_control;

use crate::engine::{Engine, Host, Msrs, Outcome};
use crate::mode;
use vmcs12::addr::{Linear, Physical};
use vmcs12::arch::event::Exception;
use vmcs12::arch::rflags;
use vmcs12::error::InstructionError;
use vmcs12::exit::Reason;
use vmcs12::field::{Vmcs, table::*};

/// How a VMX instruction fails. SDM Vol. 3, "VMX Instruction Reference", "Conventions".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// VMfailInvalid.
    Invalid,
    /// VMfail: VMfailValid if there is a current VMCS, else VMfailInvalid.
    Numbered(InstructionError),
    /// It raises an exception instead.
    Fault(Exception),
}

impl Engine {
    /// L1 executed a VMX instruction, which exited from vmcs01. It is completed: RIP has moved and the flags are set,
    /// or L2 runs now, or L1 has got the exit of a failed entry; or else L1 gets an exception.
    pub fn on_l1_instruction<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        reason: Reason,
    ) -> Outcome {
        let done = match reason {
            Reason::Vmlaunch | Reason::Vmresume => return self.on_entry_instruction(host, reason),
            Reason::Vmxon => self.vmxon(host),
            Reason::Vmxoff => self.vmxoff(host),
            Reason::Vmclear => self.vmclear(host),
            Reason::Vmptrld => self.vmptrld(host),
            Reason::Vmptrst => self.vmptrst(host),
            Reason::Vmread => self.vmread(host),
            Reason::Vmwrite => self.vmwrite(host),
            Reason::Invept => self.invept(host),
            Reason::Invvpid => self.invvpid(host),
            Reason::Vmcall => self.vmcall(host),
            _ => Err(Failure::Fault(Exception::UD)),
        };
        self.finish(host, done)
    }

    /// The first steps of every VMX instruction but VMXON: is L1 in VMX operation, in a mode that has the
    /// instruction, and at privilege level 0?
    fn in_root_operation<P: Physical, L: Linear, M: Msrs>(
        &self,
        host: &Host<P, L, M>,
    ) -> Result<(), Failure> {
        if !self.in_vmx_operation() || mode::lacks_vmx_instructions(&host.vmcs01.current) {
            return Err(Failure::Fault(Exception::UD));
        }
        at_privilege_0(&host.vmcs01.current)
    }

    /// VMCALL in root operation: there is no SMM-transfer monitor to call.
    fn vmcall<P: Physical, L: Linear, M: Msrs>(&self, host: &Host<P, L, M>) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        Err(Failure::Numbered(InstructionError::VmcallInRoot))
    }

    /// Sets the flags and moves RIP on, unless the instruction faulted.
    fn finish<P: Physical, L: Linear, M: Msrs>(
        &self,
        host: &mut Host<P, L, M>,
        done: Result<(), Failure>,
    ) -> Outcome {
        let set = match done {
            Ok(()) => 0,
            Err(Failure::Fault(exception)) => return Outcome::Exception(exception),
            Err(Failure::Invalid) => rflags::CF,
            Err(Failure::Numbered(error)) => match &mut host.vmcs01.linked {
                Some(vmcs12) => {
                    vmcs12.set(VM_INSTRUCTION_ERROR, error.number());
                    rflags::ZF
                }
                None => rflags::CF,
            },
        };
        let vmcs01 = &mut host.vmcs01.current;
        let flags = vmcs01.get(GUEST_RFLAGS) & !rflags::STATUS;
        vmcs01.set(GUEST_RFLAGS, flags | set);
        mode::skip_instruction(vmcs01);
        Outcome::Completed
    }
}

fn at_privilege_0(vmcs01: &Vmcs) -> Result<(), Failure> {
    match mode::privilege(vmcs01) {
        0 => Ok(()),
        _ => Err(Failure::Fault(Exception::gp(0))),
    }
}
