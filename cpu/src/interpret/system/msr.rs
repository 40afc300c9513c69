//! RDMSR and WRMSR. SDM Vol. 3, "MSR-Bitmap Address", "Changes to Instruction Behavior in VMX Non-Root Operation"; Vol. 4,
//! "Model-Specific Registers".

use super::{End, Flow, Step, exit, finish, general_protection, handler};
use crate::block::Op;
use crate::decode::{Decoding, Selected};
use crate::mmu::access::is_canonical;
use crate::state::Cpu;
use vmcs12::addr::Physical;
use vmcs12::arch::cr::cr0;
use vmcs12::arch::efer;
use vmcs12::arch::eptp::memory_type;
use vmcs12::arch::msr::*;
use vmcs12::arch::segment::{Segment, SegmentRegister};
use vmcs12::control::USE_MSR_BITMAPS;
use vmcs12::cpu_state::gpr::{RAX, RCX, RDX};
use vmcs12::exit::Reason;
use vmcs12::field::table::ADDRESS_OF_MSR_BITMAPS;

/// The two ranges of MSRs that the bitmaps cover, and the size of each bitmap in bytes.
const LOW: u32 = 0;
const HIGH: u32 = 0xc000_0000;
const RANGE: u32 = 0x2000;
const BITMAP: u64 = 0x400;
/// Bits of IA32_DEBUGCTL that exist. SDM Vol. 3, "IA32_DEBUGCTL MSR".
const DEBUGCTL: u64 = 0xdfc3;
/// Bits of IA32_SPEC_CTRL that exist: IBRS, STIBP, SSBD and the controls of leaf 7.
const SPEC_CTRL: u64 = 0x5ff;

#[derive(Clone, Copy)]
enum Access {
    Read = 0,
    Write = 1,
}

pub(super) fn select(d: &Decoding<'_>, _: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    match d.inst.mnemonic() {
        Rdmsr => Some(Selected::next(handler!(rdmsr))),
        Wrmsr => Some(Selected::end(handler!(wrmsr))),
        _ => None,
    }
}

impl Cpu {
    /// Does the access exit? Beyond the bitmaps' ranges it always does.
    fn intercepts_msr(&mut self, index: u32, access: Access) -> bool {
        if !self.controls.has(USE_MSR_BITMAPS) {
            return true;
        }
        let (half, bit) = match index {
            LOW..RANGE => (0, index - LOW),
            HIGH.. if index - HIGH < RANGE => (1, index - HIGH),
            _ => return true,
        };
        let bitmap = 2 * access as u64 + half;
        let at = self.vmcs().get(ADDRESS_OF_MSR_BITMAPS).plus(bitmap * BITMAP + u64::from(bit / 8));
        let mut byte = [0];
        self.memory.read(at, &mut byte);
        byte[0] >> (bit % 8) & 1 != 0
    }

    fn checked_msr(&mut self, access: Access, reason: Reason) -> Result<u32, End> {
        self.require_cpl_0()?;
        let index = self.gpr[RCX] as u32;
        if self.intercepts_msr(index, access) { exit(reason) } else { Ok(index) }
    }

    /// Splits a value into EDX:EAX.
    pub(super) fn set_edx_eax(&mut self, value: u64) {
        self.gpr[RAX] = value & 0xffff_ffff;
        self.gpr[RDX] = value >> 32;
    }
}

fn rdmsr(cpu: &mut Cpu, op: &Op) -> Step {
    let index = cpu.checked_msr(Access::Read, Reason::Rdmsr)?;
    let value = match index {
        IA32_TIME_STAMP_COUNTER => cpu.tsc(op),
        IA32_SPEC_CTRL => cpu.state().spec_ctrl,
        IA32_SYSENTER_CS => cpu.sysenter.0,
        IA32_SYSENTER_ESP => cpu.sysenter.1,
        IA32_SYSENTER_EIP => cpu.sysenter.2,
        IA32_DEBUGCTL => cpu.debugctl,
        IA32_PAT => cpu.pat,
        IA32_XSS => cpu.state().xss,
        IA32_EFER => cpu.efer,
        IA32_STAR => cpu.state().star,
        IA32_LSTAR => cpu.state().lstar,
        IA32_CSTAR => cpu.state().cstar,
        IA32_FMASK => cpu.state().fmask,
        IA32_FS_BASE => cpu.segment(SegmentRegister::Fs).base,
        IA32_GS_BASE => cpu.segment(SegmentRegister::Gs).base,
        IA32_KERNEL_GS_BASE => cpu.state().kernel_gs_base,
        IA32_TSC_AUX => cpu.state().tsc_aux,
        _ => return general_protection(),
    };
    cpu.set_edx_eax(value);
    Ok(Flow::Next)
}

/// The value, if it is canonical.
fn canonical(value: u64) -> Result<u64, End> {
    if is_canonical(value) { Ok(value) } else { general_protection() }
}

/// The value, if it has no bit but these.
fn within(value: u64, bits: u64) -> Result<u64, End> {
    if value & !bits == 0 { Ok(value) } else { general_protection() }
}

/// IA32_PAT holds eight memory types. SDM Vol. 3, "IA32_PAT MSR".
fn memory_types(value: u64) -> Result<u64, End> {
    /// UC-, which only the PAT has.
    const UC_MINUS: u8 = 7;
    use memory_type::{UC, WB, WC, WP, WT};
    let valid = |kind: u8| matches!(kind, UC | WC | WT | WP | WB | UC_MINUS);
    if value.to_le_bytes().into_iter().all(valid) { Ok(value) } else { general_protection() }
}

fn wrmsr(cpu: &mut Cpu, _: &Op) -> Step {
    let index = cpu.checked_msr(Access::Write, Reason::Wrmsr)?;
    let value = cpu.gpr[RDX] << 32 | (cpu.gpr[RAX] & 0xffff_ffff);
    match index {
        IA32_SPEC_CTRL => cpu.state().spec_ctrl = within(value, SPEC_CTRL)?,
        // Commands to structures that this processor does not have.
        IA32_PRED_CMD | IA32_FLUSH_CMD => {
            within(value, 1)?;
        }
        IA32_SYSENTER_CS => cpu.sysenter.0 = value & 0xffff_ffff,
        IA32_SYSENTER_ESP => cpu.sysenter.1 = canonical(value)?,
        IA32_SYSENTER_EIP => cpu.sysenter.2 = canonical(value)?,
        IA32_DEBUGCTL => cpu.debugctl = within(value, DEBUGCTL)?,
        IA32_PAT => cpu.pat = memory_types(value)?,
        IA32_XSS => cpu.state().xss = within(value, 0)?,
        IA32_EFER => write_efer(cpu, value)?,
        IA32_STAR => cpu.state().star = value,
        IA32_LSTAR => cpu.state().lstar = canonical(value)?,
        IA32_CSTAR => cpu.state().cstar = canonical(value)?,
        IA32_FMASK => cpu.state().fmask = within(value, 0xffff_ffff)?,
        IA32_FS_BASE => set_base(cpu, SegmentRegister::Fs, value)?,
        IA32_GS_BASE => set_base(cpu, SegmentRegister::Gs, value)?,
        IA32_KERNEL_GS_BASE => cpu.state().kernel_gs_base = canonical(value)?,
        IA32_TSC_AUX => cpu.state().tsc_aux = within(value, 0xffff_ffff)?,
        _ => return general_protection(),
    }
    Ok(Flow::Leave)
}

fn set_base(cpu: &mut Cpu, register: SegmentRegister, base: u64) -> Result<(), End> {
    let base = canonical(base)?;
    let segment = *cpu.segment(register);
    cpu.set_segment(register, Segment { base, ..segment });
    Ok(())
}

/// LMA follows from LME and CR0.PG; LME cannot change while paging is on.
fn write_efer(cpu: &mut Cpu, value: u64) -> Result<(), End> {
    let value = within(value, efer::ALL)?;
    let changes = value ^ cpu.efer;
    if changes & efer::LME != 0 && cpu.cr0 & cr0::PG != 0 {
        return general_protection();
    }
    cpu.efer = (value & !efer::LMA) | (cpu.efer & efer::LMA);
    cpu.refresh_context();
    Ok(())
}
