//! The VMX instructions in non-root operation: all exit but VMREAD and VMWRITE of a shadow VMCS.
//! SDM Vol. 3, "VMX Instruction Reference", "VMCS Shadowing".

use super::{
    End, Flow, MEMORY, Step, displacement, done, exit, finish, handler, memory_information, register_number,
    set_either, undefined,
};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::flags::Status;
use crate::interpret::operand::register;
use crate::mmu::Kind;
use crate::state::Cpu;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::rflags;
use vmcs12::control::VMCS_SHADOWING;
use vmcs12::exit::Reason;
use vmcs12::field::table::{VM_INSTRUCTION_ERROR, VMREAD_BITMAP_ADDRESS, VMWRITE_BITMAP_ADDRESS};
use vmcs12::field::{AnyField, VmcsSet, Width};

/// Bits of a field operand that select a bit in the VMREAD and VMWRITE bitmaps.
const BITMAP_INDEX: u64 = 0x7fff;
/// Bit 0 of an encoding: the high 32 bits of a 64-bit field. SDM Vol. 3, "Field Encoding in VMCS".
const HIGH: u64 = 1;
/// VM-instruction error: VMREAD/VMWRITE from/to unsupported VMCS component.
const UNSUPPORTED_COMPONENT: u32 = 12;
/// Register form, bit 10, of the instruction information of VMREAD and VMWRITE, and its two registers.
const REGISTER_FORM: u32 = 1 << 10;
const OPERAND_SHIFT: u32 = 3;
const FIELD_SHIFT: u32 = 28;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    let inst = d.inst;
    Some(Selected::end(match inst.mnemonic() {
        Vmcall => handler!(vmcall),
        Vmfunc => handler!(vmfunc),
        Vmlaunch => handler!(plain::<{ Reason::Vmlaunch as u16 }>),
        Vmresume => handler!(plain::<{ Reason::Vmresume as u16 }>),
        Vmxoff => handler!(plain::<{ Reason::Vmxoff as u16 }>),
        Vmxon => handler!(with_memory::<{ Reason::Vmxon as u16 }>),
        Vmclear => handler!(with_memory::<{ Reason::Vmclear as u16 }>),
        Vmptrld => handler!(with_memory::<{ Reason::Vmptrld as u16 }>),
        Vmptrst => handler!(with_memory::<{ Reason::Vmptrst as u16 }>),
        Invept | Invvpid => {
            op.dst = register_offset(inst.op0_register());
            if inst.mnemonic() == Invept {
                handler!(with_type::<{ Reason::Invept as u16 }>)
            } else {
                handler!(with_type::<{ Reason::Invvpid as u16 }>)
            }
        }
        Vmread => {
            set_either(d, op, 0);
            op.dst = register_offset(inst.op1_register());
            return Some(Selected::next(handler!(vmread)));
        }
        Vmwrite => {
            set_either(d, op, 1);
            op.dst = register_offset(inst.op0_register());
            return Some(Selected::next(handler!(vmwrite)));
        }
        _ => return None,
    }))
}

/// VMX instructions exist in protected mode, but not in compatibility mode.
fn require_vmx_mode(cpu: &Cpu) -> Result<(), End> {
    cpu.require_protected()?;
    if cpu.long_mode() && !cpu.is_64() { undefined() } else { Ok(()) }
}

fn reason<const REASON: u16>() -> Reason {
    Reason::from_number(REASON).expect("the number comes from a reason")
}

/// VMCALL exits in every mode and at every CPL.
fn vmcall(_: &mut Cpu, _: &Op) -> Step {
    exit(Reason::Vmcall)
}

/// VMFUNC: no VM function can be enabled.
fn vmfunc(_: &mut Cpu, _: &Op) -> Step {
    undefined()
}

fn plain<const REASON: u16>(cpu: &mut Cpu, _: &Op) -> Step {
    require_vmx_mode(cpu)?;
    exit(reason::<REASON>())
}

fn with_memory<const REASON: u16>(cpu: &mut Cpu, op: &Op) -> Step {
    require_vmx_mode(cpu)?;
    let (qualification, information) = (displacement(cpu, op), memory_information(op));
    Err(End::Exit { reason: reason::<REASON>(), qualification, information })
}

fn with_type<const REASON: u16>(cpu: &mut Cpu, op: &Op) -> Step {
    require_vmx_mode(cpu)?;
    let information = memory_information(op) | register_number(op.dst) << FIELD_SHIFT;
    Err(End::Exit { reason: reason::<REASON>(), qualification: displacement(cpu, op), information })
}

fn access_exit<T>(cpu: &Cpu, op: &Op, reason: Reason) -> Result<T, End> {
    let field = register_number(op.dst) << FIELD_SHIFT;
    let (qualification, operand) = if op.extra & MEMORY != 0 {
        (displacement(cpu, op), memory_information(op))
    } else {
        (0, REGISTER_FORM | register_number(op.src) << OPERAND_SHIFT)
    };
    Err(End::Exit { reason, qualification, information: operand | field })
}

/// A field operand that the bitmap lets through: the field in the linked VMCS and which half of it is meant.
#[derive(Clone, Copy)]
struct Component {
    field: AnyField,
    high: bool,
}

/// What an access without an exit finds.
enum Shadowed {
    Found(Component),
    /// VMfailInvalid: no VMCS is linked.
    NoLink,
    /// VMfailValid.
    Unsupported,
}

impl Cpu {
    /// VMCS shadowing: the field operand decides between the exit and the linked VMCS.
    fn shadowed(&mut self, op: &Op, bitmap: fn(&mut Self) -> Pa, reason: Reason) -> Result<Shadowed, End> {
        require_vmx_mode(self)?;
        let operand = register::<u64>(self, op.dst) & if self.is_64() { u64::MAX } else { 0xffff_ffff };
        if !self.controls.has(VMCS_SHADOWING) || operand & !BITMAP_INDEX != 0 {
            return access_exit(self, op, reason);
        }
        let mut byte = [0];
        let at = bitmap(self).plus(operand / 8);
        self.memory.read(at, &mut byte);
        if byte[0] >> (operand % 8) & 1 != 0 {
            return access_exit(self, op, reason);
        }
        self.require_cpl_0()?;
        if self.set().linked.is_none() {
            return Ok(Shadowed::NoLink);
        }
        let high = operand & HIGH != 0;
        let field = AnyField::from_encoding((operand & !HIGH) as u32);
        Ok(match field {
            Some(field) if !high || field.row().width() == Width::W64 => {
                Shadowed::Found(Component { field, high })
            }
            _ => Shadowed::Unsupported,
        })
    }

    /// The VMCS entered, and the one linked to it.
    fn set(&mut self) -> &mut VmcsSet {
        // SAFETY: `enter` and `complete` set `vmcs` from a reference that they hold for their whole duration.
        unsafe { &mut *self.vmcs }
    }

    /// VMfailInvalid and VMfailValid. SDM Vol. 3, "VMX Instruction Reference", "Conventions".
    fn vm_fail(&mut self, shadowed: &Shadowed) -> Step {
        let flag = if matches!(shadowed, Shadowed::NoLink) {
            rflags::CF
        } else {
            self.vmcs().set(VM_INSTRUCTION_ERROR, UNSUPPORTED_COMPONENT);
            rflags::ZF
        };
        self.status = Status::from_bits(flag);
        Ok(Flow::Next)
    }
}

fn vmread(cpu: &mut Cpu, op: &Op) -> Step {
    let bitmap = |cpu: &mut Cpu| cpu.vmcs().get(VMREAD_BITMAP_ADDRESS);
    let shadowed = cpu.shadowed(op, bitmap, Reason::Vmread)?;
    let Shadowed::Found(component) = shadowed else { return cpu.vm_fail(&shadowed) };
    let value = read_component(cpu.set(), component);
    let long = cpu.is_64();
    if op.extra & MEMORY == 0 {
        cpu.set_register_sized(op.src, if long { 8 } else { 4 }, value);
    } else if long {
        let linear = cpu.operand_linear(op, 8, Kind::Write)?;
        done(cpu.store::<u64>(op, linear, value))?;
    } else {
        let linear = cpu.operand_linear(op, 4, Kind::Write)?;
        done(cpu.store::<u32>(op, linear, value as u32))?;
    }
    cpu.set().shadow_accesses.0 += 1;
    cpu.status = Status::from_bits(0);
    Ok(Flow::Next)
}

fn vmwrite(cpu: &mut Cpu, op: &Op) -> Step {
    let bitmap = |cpu: &mut Cpu| cpu.vmcs().get(VMWRITE_BITMAP_ADDRESS);
    let shadowed = cpu.shadowed(op, bitmap, Reason::Vmwrite)?;
    if matches!(shadowed, Shadowed::NoLink) {
        return cpu.vm_fail(&shadowed);
    }
    // The source is read before the field operand is looked at.
    let value =
        if cpu.is_64() { cpu.read_either::<u64>(op)? } else { u64::from(cpu.read_either::<u32>(op)?) };
    let Shadowed::Found(component) = shadowed else { return cpu.vm_fail(&shadowed) };
    let rip = cpu.rip_of(op);
    let set = cpu.set();
    write_component(set, component, value);
    if let Some(writers) = &mut set.writers {
        writers[component.field.slot()] = rip;
    }
    set.shadow_accesses.1 += 1;
    cpu.status = Status::from_bits(0);
    Ok(Flow::Next)
}

fn read_component(set: &VmcsSet, component: Component) -> u64 {
    let value = set.linked.as_ref().map_or(0, |linked| linked.raw(component.field));
    if component.high { value >> 32 } else { value }
}

/// Writes a field. Outside 64-bit mode, as everywhere, a full access to a 64-bit field writes all of it.
fn write_component(set: &mut VmcsSet, component: Component, value: u64) {
    let Some(linked) = &mut set.linked else { return };
    let before = linked.raw(component.field);
    let value = if component.high { (before & 0xffff_ffff) | value << 32 } else { value };
    linked.set_raw(component.field, value);
}
