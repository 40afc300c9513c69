//! MOV CR, LMSW, SMSW, CLTS. SDM Vol. 2, "MOV—Move to/from Control Registers"; Vol. 3, "Changes to Instruction
//! Behavior in VMX Non-Root Operation".

use super::{
    End, Flow, MEMORY, Step, finish, general_protection, handler, qualified_exit, register_number, set_either,
};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::interpret::operand::register;
use crate::mmu::Kind;
use crate::state::{CodeSize, Cpu};
use vmcs12::addr::Physical;
use vmcs12::arch::cr::{cr0, cr3, cr4};
use vmcs12::arch::efer;
use vmcs12::arch::event::Exception;
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::exit::qualification::{ControlRegisterAccess, ControlRegisterAccessKind};
use vmcs12::field::table::*;

/// Bits of CR0 that exist.
const CR0: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
/// Bits that LMSW loads.
const MACHINE_STATUS: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
/// Bits of CR0 whose change reloads the PDPTEs under PAE paging. SDM Vol. 3, "PDPTE Registers".
const CR0_PDPTE: u64 = cr0::CD | cr0::NW | cr0::PG;
/// Bits of CR4 whose change reloads the PDPTEs under PAE paging.
const CR4_PDPTE: u64 = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
/// Bits of CR4 whose change drops every translation. SDM Vol. 3, "Operations that Invalidate TLBs and
/// Paging-Structure Caches".
const CR4_FLUSH: u64 = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP | cr4::PCIDE;
/// Offset of VTPR in the virtual-APIC page. SDM Vol. 3, "TPR Shadow".
const VTPR: u64 = 0x80;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::{Code::*, Mnemonic};
    let inst = d.inst;
    match inst.code() {
        Mov_r32_cr | Mov_r64_cr => {
            op.src = register_offset(inst.op0_register());
            let handler = match inst.op1_register().number() {
                0 => handler!(read_cr0),
                2 => handler!(read_cr2),
                3 => handler!(read_cr3),
                4 => handler!(read_cr4),
                8 => handler!(read_cr8),
                _ => return None,
            };
            return Some(Selected::next(handler));
        }
        Mov_cr_r32 | Mov_cr_r64 => {
            op.src = register_offset(inst.op1_register());
            return Some(Selected::end(match inst.op0_register().number() {
                0 => handler!(write_cr0),
                2 => handler!(write_cr2),
                3 => handler!(write_cr3),
                4 => handler!(write_cr4),
                8 => handler!(write_cr8),
                _ => return None,
            }));
        }
        _ => {}
    }
    match inst.mnemonic() {
        Mnemonic::Clts => Some(Selected::next(handler!(clts))),
        Mnemonic::Lmsw => {
            set_either(d, op, 0);
            Some(Selected::end(handler!(lmsw)))
        }
        Mnemonic::Smsw => {
            set_either(d, op, 0);
            op.imm = if op.extra & MEMORY != 0 { 2 } else { inst.op0_register().size() as u64 };
            Some(Selected::next(handler!(smsw)))
        }
        _ => None,
    }
}

/// The exit of MOV to or from a control register.
fn access_exit<T>(op: &Op, number: u8, kind: ControlRegisterAccessKind) -> Result<T, End> {
    let qualification = ControlRegisterAccess::default()
        .with(ControlRegisterAccess::REGISTER, number)
        .with(ControlRegisterAccess::KIND, kind)
        .with(ControlRegisterAccess::GPR, register_number(op.src) as u8);
    qualified_exit(Reason::ControlRegisterAccess, qualification.0)
}

fn write_exit<T>(op: &Op, number: u8) -> Result<T, End> {
    access_exit(op, number, ControlRegisterAccessKind::MovToCr)
}

fn read_exit<T>(op: &Op, number: u8) -> Result<T, End> {
    access_exit(op, number, ControlRegisterAccessKind::MovFromCr)
}

impl Cpu {
    /// The source of MOV to a control register: 32 bits outside 64-bit mode.
    fn control_source(&self, op: &Op) -> u64 {
        let value = register::<u64>(self, op.src);
        if self.is_64() { value } else { value & 0xffff_ffff }
    }

    fn set_from_control(&mut self, op: &Op, value: u64) -> Step {
        self.set_register_sized(op.src, if self.is_64() { 8 } else { 4 }, value);
        Ok(Flow::Next)
    }

    /// CR0 as the guest reads it: host-owned bits are the shadow's.
    fn visible_cr0(&mut self) -> u64 {
        let (mask, shadow) = (self.vmcs().get(CR0_GUEST_HOST_MASK), self.vmcs().get(CR0_READ_SHADOW));
        (self.cr0 & !mask) | (shadow & mask)
    }

    /// CR4 as the guest reads it.
    fn visible_cr4(&mut self) -> u64 {
        let (mask, shadow) = (self.vmcs().get(CR4_GUEST_HOST_MASK), self.vmcs().get(CR4_READ_SHADOW));
        (self.cr4 & !mask) | (shadow & mask)
    }
}

fn read_cr0(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let value = cpu.visible_cr0();
    cpu.set_from_control(op, value)
}

fn read_cr2(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let value = cpu.state().cr2;
    cpu.set_from_control(op, value)
}

fn read_cr3(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    if cpu.controls.has(CR3_STORE_EXITING) {
        return read_exit(op, 3);
    }
    cpu.set_from_control(op, cpu.cr3)
}

fn read_cr4(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let value = cpu.visible_cr4();
    cpu.set_from_control(op, value)
}

fn read_cr8(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    if cpu.controls.has(CR8_STORE_EXITING) {
        return read_exit(op, 8);
    }
    let value = if cpu.controls.has(USE_TPR_SHADOW) {
        let vtpr = cpu.vmcs().get(VIRTUAL_APIC_ADDRESS).plus(VTPR);
        u64::from(cpu.memory.read_u32(vtpr)) >> 4 & 0xf
    } else {
        0
    };
    cpu.set_from_control(op, value)
}

fn write_cr2(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let value = cpu.control_source(op);
    cpu.state().cr2 = value;
    Ok(Flow::Leave)
}

/// MOV to CR8. Without a TPR shadow there is no local APIC that could take the value.
/// SDM Vol. 3, "TPR Virtualization".
fn write_cr8(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    if cpu.controls.has(CR8_LOAD_EXITING) {
        return write_exit(op, 8);
    }
    let value = cpu.control_source(op);
    if value > 15 {
        return general_protection();
    }
    if !cpu.controls.has(USE_TPR_SHADOW) {
        return Ok(Flow::Leave);
    }
    let vtpr = cpu.vmcs().get(VIRTUAL_APIC_ADDRESS).plus(VTPR);
    cpu.memory.write_u32(vtpr, (value as u32) << 4);
    let threshold = u64::from(cpu.vmcs().get(TPR_THRESHOLD)) & 0xf;
    Ok(if threshold > value { Flow::Trap(Reason::TprBelowThreshold) } else { Flow::Leave })
}

fn write_cr0(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let source = cpu.control_source(op);
    let (mask, shadow) = (cpu.vmcs().get(CR0_GUEST_HOST_MASK), cpu.vmcs().get(CR0_READ_SHADOW));
    if (source ^ shadow) & mask != 0 {
        return write_exit(op, 0);
    }
    let value = (cpu.cr0 & mask) | (source & !mask);
    cpu.load_cr0(value)?;
    Ok(Flow::Leave)
}

fn write_cr4(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let source = cpu.control_source(op);
    let (mask, shadow) = (cpu.vmcs().get(CR4_GUEST_HOST_MASK), cpu.vmcs().get(CR4_READ_SHADOW));
    if (source ^ shadow) & mask != 0 {
        return write_exit(op, 4);
    }
    let value = (cpu.cr4 & mask) | (source & !mask);
    cpu.load_cr4(value)?;
    Ok(Flow::Leave)
}

fn write_cr3(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let source = cpu.control_source(op);
    if cpu.controls.has(CR3_LOAD_EXITING) && !is_cr3_target(cpu, source) {
        return write_exit(op, 3);
    }
    cpu.load_cr3(source)?;
    Ok(Flow::Leave)
}

fn is_cr3_target(cpu: &mut Cpu, value: u64) -> bool {
    let targets = [CR3_TARGET_VALUE_0, CR3_TARGET_VALUE_1, CR3_TARGET_VALUE_2, CR3_TARGET_VALUE_3];
    let count = cpu.vmcs().get(CR3_TARGET_COUNT) as usize;
    targets.into_iter().take(count).any(|target| cpu.vmcs().get(target) == value)
}

fn clts(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_cpl_0()?;
    let (mask, shadow) = (cpu.vmcs().get(CR0_GUEST_HOST_MASK), cpu.vmcs().get(CR0_READ_SHADOW));
    if mask & shadow & cr0::TS != 0 {
        let kind = ControlRegisterAccessKind::Clts;
        let qualification = ControlRegisterAccess::default().with(ControlRegisterAccess::KIND, kind);
        return qualified_exit(Reason::ControlRegisterAccess, qualification.0);
    }
    cpu.cr0 &= !(cr0::TS & !mask);
    Ok(Flow::Next)
}

fn lmsw(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let source = u64::from(cpu.read_either::<u16>(op)?);
    let (mask, shadow) = (cpu.vmcs().get(CR0_GUEST_HOST_MASK), cpu.vmcs().get(CR0_READ_SHADOW));
    let sets_pe = mask & source & !shadow & cr0::PE != 0;
    let changes = mask & (source ^ shadow) & (MACHINE_STATUS & !cr0::PE) != 0;
    if sets_pe || changes {
        return lmsw_exit(cpu, op, source);
    }
    // PE can be set, never cleared.
    let loaded = MACHINE_STATUS & !mask;
    let value = (cpu.cr0 & !loaded) | (source & loaded) | (cpu.cr0 & cr0::PE);
    cpu.load_cr0(value)?;
    Ok(Flow::Leave)
}

fn lmsw_exit(cpu: &mut Cpu, op: &Op, source: u64) -> Step {
    let memory = op.extra & MEMORY != 0;
    if memory {
        let linear = cpu.operand_linear(op, 2, Kind::Read)?;
        cpu.vmcs().set(GUEST_LINEAR_ADDRESS, linear);
    }
    let qualification = ControlRegisterAccess::default()
        .with(ControlRegisterAccess::KIND, ControlRegisterAccessKind::Lmsw)
        .with(ControlRegisterAccess::LMSW_IN_MEMORY, memory)
        .with(ControlRegisterAccess::LMSW_SOURCE, source as u16);
    qualified_exit(Reason::ControlRegisterAccess, qualification.0)
}

fn smsw(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.cpl > 0 && cpu.cr4 & cr4::UMIP != 0 {
        return general_protection();
    }
    let value = cpu.visible_cr0();
    cpu.write_either_16(op, value)?;
    Ok(Flow::Next)
}

impl Cpu {
    /// Is PAE paging in use with these values?
    pub(crate) fn pae_paging(&self, cr0: u64, cr4: u64) -> bool {
        cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }

    /// The PDPTEs that CR3 points to. #GP(0) if a reserved bit is set.
    fn pdptes(&mut self, cr3: u64) -> Result<[u64; 4], End> {
        self.read_pdptes(cr3)?.ok_or_else(|| Exception::gp(0).into())
    }

    /// Loads CR0. SDM Vol. 3, "Control Registers", "IA-32e Mode"; "Unrestricted Guests".
    fn load_cr0(&mut self, value: u64) -> Result<(), End> {
        let value = value & (CR0 | !0xffff_ffff) | cr0::ET;
        let (on, off) = (value & !self.cr0, self.cr0 & !value);
        let mut fixed = cr0::NE;
        if !self.controls.has(UNRESTRICTED_GUEST) {
            fixed |= cr0::PE | cr0::PG;
        }
        let paging_unprotected = value & cr0::PG != 0 && value & cr0::PE == 0;
        let not_write_through = value & cr0::NW != 0 && value & cr0::CD == 0;
        if value >> 32 != 0 || value & fixed != fixed || paging_unprotected || not_write_through {
            return general_protection();
        }
        let mut efer = self.efer;
        if on & cr0::PG != 0 && efer & efer::LME != 0 {
            let code = self.segment(vmcs12::arch::segment::SegmentRegister::Cs).rights;
            if self.cr4 & cr4::PAE == 0 || code.get(vmcs12::arch::segment::AccessRights::L) {
                return general_protection();
            }
            efer |= efer::LMA;
        }
        if off & cr0::PG != 0 {
            if self.code_size == CodeSize::Bits64 || self.cr4 & cr4::PCIDE != 0 {
                return general_protection();
            }
            efer &= !efer::LMA;
        }
        let before = std::mem::replace(&mut self.efer, efer);
        if self.pae_paging(value, self.cr4) && (on | off) & CR0_PDPTE != 0 {
            match self.pdptes(self.cr3) {
                Ok(pdpte) => self.pdpte = pdpte,
                Err(end) => {
                    self.efer = before;
                    return Err(end);
                }
            }
        }
        self.cr0 = value;
        if (on | off) & cr0::PG != 0 {
            self.flush_all();
        }
        self.refresh_mode();
        Ok(())
    }

    /// Loads CR3. SDM Vol. 3, "Process-Context Identifiers (PCIDs)".
    fn load_cr3(&mut self, source: u64) -> Result<(), End> {
        let with_pcid = self.cr4 & cr4::PCIDE != 0;
        let keep = with_pcid && source & cr3::NO_FLUSH != 0;
        let value = if with_pcid { source & !cr3::NO_FLUSH } else { source };
        if value >> self.model.physical_width != 0 {
            return general_protection();
        }
        if self.pae_paging(self.cr0, self.cr4) {
            self.pdpte = self.pdptes(value)?;
        }
        self.cr3 = value;
        if !keep {
            self.flush_pcid(self.pcid());
        }
        self.refresh_context();
        Ok(())
    }

    /// Loads CR4. SDM Vol. 3, "Control Registers".
    fn load_cr4(&mut self, value: u64) -> Result<(), End> {
        let (on, off) = (value & !self.cr4, self.cr4 & !value);
        let unknown = value & !self.model.capabilities.cr4_fixed1 != 0;
        let vmxe_off = value & cr4::VMXE == 0;
        let long = self.long_mode();
        let pae_off = long && value & cr4::PAE == 0;
        let bad_pcid = on & cr4::PCIDE != 0 && (!long || self.cr3 & cr3::PCID != 0);
        if unknown || vmxe_off || pae_off || bad_pcid {
            return general_protection();
        }
        if self.pae_paging(self.cr0, value) && (on | off) & CR4_PDPTE != 0 {
            self.pdpte = self.pdptes(self.cr3)?;
        }
        self.cr4 = value;
        if (on | off) & CR4_FLUSH != 0 {
            self.flush_all();
        }
        self.refresh_context();
        Ok(())
    }
}
