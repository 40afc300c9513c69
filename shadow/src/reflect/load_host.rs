//! L1's state after an exit: vmcs12's host state, in vmcs01. SDM Vol. 3, "Loading Host State".

use crate::cr;
use crate::ept01::Ept01;
use vmcs12::addr::{Gpa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::arch::state::{Activity, PendingDebugExceptions};
use vmcs12::arch::{efer, rflags};
use vmcs12::caps::Capabilities;
use vmcs12::control::*;
use vmcs12::error::Abort;
use vmcs12::field::{Field, Vmcs, table::*};

/// What the processor had before the exit, where the exit does not load all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Inherited {
    cr0: u64,
    efer: u64,
    pat: u64,
}

impl From<&Vmcs> for Inherited {
    fn from(before: &Vmcs) -> Self {
        Self {
            cr0: before.get(GUEST_CR0),
            efer: before.get(GUEST_IA32_EFER),
            pat: before.get(GUEST_IA32_PAT),
        }
    }
}

/// Bits of CR0 that the exit loads; the others keep their values. SDM Vol. 3, "Loading Host Control Registers, Debug Registers, MSRs".
const LOADED_CR0: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
/// DR7 after an exit.
const DR7: u64 = 0x400;
/// Limit of GDTR and IDTR after an exit.
const TABLE_LIMIT: u32 = 0xffff;
/// Limit of TR after an exit.
const TR_LIMIT: u32 = 0x67;
/// Types of segments after an exit: accessed code, readable; accessed data, writable; busy TSS, 32 or 64 bits.
const CODE: u8 = 11;
const DATA: u8 = 3;
const BUSY_TSS: u8 = 11;

/// Fields that are loaded as they are.
#[rustfmt::skip]
const LOADED: &[(Field<u64>, Field<u64>)] = &[
    // into vmcs01               from vmcs12
    (GUEST_RSP,                  HOST_RSP),
    (GUEST_RIP,                  HOST_RIP),
    (GUEST_GDTR_BASE,            HOST_GDTR_BASE),
    (GUEST_IDTR_BASE,            HOST_IDTR_BASE),
    (GUEST_IA32_SYSENTER_ESP,    HOST_IA32_SYSENTER_ESP),
    (GUEST_IA32_SYSENTER_EIP,    HOST_IA32_SYSENTER_EIP),
];

/// A segment that is a data segment after an exit; without a field for its base it begins at 0.
struct DataSegment(SegmentRegister, Field<u16>, Option<Field<u64>>);

#[rustfmt::skip]
const DATA_SEGMENTS: &[DataSegment] = &[
    DataSegment(SegmentRegister::Es, HOST_ES_SELECTOR, None),
    DataSegment(SegmentRegister::Ss, HOST_SS_SELECTOR, None),
    DataSegment(SegmentRegister::Ds, HOST_DS_SELECTOR, None),
    DataSegment(SegmentRegister::Fs, HOST_FS_SELECTOR, Some(HOST_FS_BASE)),
    DataSegment(SegmentRegister::Gs, HOST_GS_SELECTOR, Some(HOST_GS_BASE)),
];

/// Loads vmcs12's host state; blocking of events and the MSR list are the caller's.
pub(super) fn load_host(
    vmcs01: &mut Vmcs,
    vmcs12: &Vmcs,
    machine: &Capabilities,
    offered: &Capabilities,
    inherited: Inherited,
) {
    load_control_registers(vmcs01, vmcs12, machine, offered, inherited);
    load_msrs(vmcs01, vmcs12, inherited);
    load_segments(vmcs01, vmcs12);
    for &(to, from) in LOADED {
        vmcs01.set(to, vmcs12.get(from));
    }
    vmcs01.set(GUEST_GDTR_LIMIT, TABLE_LIMIT);
    vmcs01.set(GUEST_IDTR_LIMIT, TABLE_LIMIT);
    vmcs01.set(GUEST_RFLAGS, rflags::FIXED);
    vmcs01.set(GUEST_ACTIVITY_STATE, Activity::Active as u32);
    vmcs01.set(GUEST_PENDING_DEBUG_EXCEPTIONS, PendingDebugExceptions::default());
}

fn load_control_registers(
    vmcs01: &mut Vmcs,
    vmcs12: &Vmcs,
    machine: &Capabilities,
    offered: &Capabilities,
    inherited: Inherited,
) {
    let cr0 = vmcs12.get(HOST_CR0) & LOADED_CR0 | inherited.cr0 & !LOADED_CR0;
    cr::load_cr0(vmcs01, machine, cr0);
    vmcs01.set(GUEST_CR3, vmcs12.get(HOST_CR3) & !offered.beyond_physical_width());
    let cr4 = match vmcs12.has(HOST_ADDRESS_SPACE_SIZE) {
        true => vmcs12.get(HOST_CR4) | cr4::PAE,
        false => vmcs12.get(HOST_CR4) & !cr4::PCIDE,
    };
    cr::load_cr4(vmcs01, machine, cr4);
    vmcs01.set(GUEST_DR7, DR7);
}

fn load_msrs(vmcs01: &mut Vmcs, vmcs12: &Vmcs, inherited: Inherited) {
    let is_long = vmcs12.has(HOST_ADDRESS_SPACE_SIZE);
    let mode = if is_long { efer::LMA | efer::LME } else { 0 };
    let loaded = match vmcs12.has(LOAD_IA32_EFER_ON_EXIT) {
        true => vmcs12.get(HOST_IA32_EFER),
        false => inherited.efer & !(efer::LMA | efer::LME) | mode,
    };
    vmcs01.set(GUEST_IA32_EFER, loaded);
    vmcs01.set_control(IA_32E_MODE_GUEST, is_long);
    let pat = match vmcs12.has(LOAD_IA32_PAT_ON_EXIT) {
        true => vmcs12.get(HOST_IA32_PAT),
        false => inherited.pat,
    };
    vmcs01.set(GUEST_IA32_PAT, pat);
    vmcs01.set(GUEST_IA32_DEBUGCTL, 0);
    vmcs01.set(GUEST_IA32_SYSENTER_CS, vmcs12.get(HOST_IA32_SYSENTER_CS));
}

/// SDM Vol. 3, "Loading Host Segment and Descriptor-Table Registers".
fn load_segments(vmcs01: &mut Vmcs, vmcs12: &Vmcs) {
    let is_long = vmcs12.has(HOST_ADDRESS_SPACE_SIZE);
    let code = present(CODE, true)
        .with(AccessRights::L, is_long)
        .with(AccessRights::DB, !is_long)
        .with(AccessRights::G, true);
    let selector = vmcs12.get(HOST_CS_SELECTOR);
    set_segment(vmcs01, SegmentRegister::Cs, Segment { base: 0, limit: u32::MAX, rights: code, selector });
    for &DataSegment(register, selector, base) in DATA_SEGMENTS {
        let selector = vmcs12.get(selector);
        let base = base.map_or(0, |base| vmcs12.get(base));
        let rights = present(DATA, true)
            .with(AccessRights::DB, true)
            .with(AccessRights::G, true)
            .with(AccessRights::UNUSABLE, selector == 0);
        set_segment(vmcs01, register, Segment { base, limit: u32::MAX, rights, selector });
    }
    let (selector, base) = (vmcs12.get(HOST_TR_SELECTOR), vmcs12.get(HOST_TR_BASE));
    let rights = present(BUSY_TSS, false);
    set_segment(vmcs01, SegmentRegister::Tr, Segment { base, limit: TR_LIMIT, rights, selector });
    let rights = AccessRights::default().with(AccessRights::UNUSABLE, true);
    set_segment(vmcs01, SegmentRegister::Ldtr, Segment { rights, ..Segment::default() });
}

fn present(kind: u8, is_code_or_data: bool) -> AccessRights {
    AccessRights::default()
        .with(AccessRights::TYPE, kind)
        .with(AccessRights::S, is_code_or_data)
        .with(AccessRights::P, true)
}

fn set_segment(vmcs01: &mut Vmcs, register: SegmentRegister, segment: Segment) {
    let fields = register.fields();
    vmcs01.set(fields.selector, segment.selector);
    vmcs01.set(fields.base, segment.base);
    vmcs01.set(fields.limit, segment.limit);
    vmcs01.set(fields.rights, segment.rights);
}

/// The page-directory-pointer table's address in CR3, and an entry's present bit and reserved bits beside those above
/// the physical-address width. SDM Vol. 3, "PAE Paging".
const PDPT: u64 = 0xffff_ffe0;
const PRESENT: u64 = 1;
const RESERVED: u64 = 0x1e6;
const PDPTES: [Field<u64>; 4] = [GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3];

/// With PAE paging the exit loads the page-directory-pointer-table entries, which must be valid.
pub(super) fn load_pdptes<P: Physical>(
    vmcs01: &mut Vmcs,
    memory: &P,
    ept01: &Ept01,
    offered: &Capabilities,
) -> Result<(), Abort> {
    let is_long = vmcs01.get(GUEST_IA32_EFER) & efer::LMA != 0;
    if is_long || vmcs01.get(GUEST_CR4) & cr4::PAE == 0 || vmcs01.get(GUEST_CR0) & cr0::PG == 0 {
        return Ok(());
    }
    let table = Gpa(vmcs01.get(GUEST_CR3) & PDPT);
    for (i, field) in (0..).zip(PDPTES) {
        let entry = memory.read_u64(ept01.machine(table.plus(8 * i)));
        if entry & PRESENT != 0 && entry & (RESERVED | offered.beyond_physical_width()) != 0 {
            return Err(Abort::HostPdpte);
        }
        vmcs01.set(field, entry);
    }
    Ok(())
}
