//! The state in which the boot processor starts, and the tables that it needs.

use super::memory_map::{place, write};
use super::{Boot, Problem};
use vm_memory::GuestMemoryMmap;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::arch::{cr, efer};
use vmcs12::cpu_state::gpr;

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the manual's own names")]
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}

/// The state of the boot processor; what is not here is as after INIT. CR0 is what the guest is to read: a
/// processor that needs more bits set (NE in VMX operation) adds them behind a mask.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's own names")]
pub struct EntryState {
    pub rip: u64,
    /// RAX…R15.
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// In the order of [`SegmentRegister`].
    pub segments: [Segment; 8],
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
}

impl EntryState {
    /// The segment register.
    #[must_use]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }
}

/// Selectors of the boot GDT; the Linux boot protocol fixes those of code and data.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const RFLAGS_RESET: u64 = 1 << 1;
const TASK_LIMIT: u32 = 0x67;

const CODE_ACCESSED: u8 = 0xb;
const DATA_ACCESSED: u8 = 0x3;
const TASK_BUSY: u8 = 0xb;

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const IDENTITY_GIB: u64 = 4;

/// Is the code segment one of 32 or of 64 bits?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Width {
    Bits32,
    Bits64,
}

fn flat(selector: u16, kind: u8, width: Width) -> Segment {
    let rights = AccessRights::default()
        .with(AccessRights::TYPE, kind)
        .with(AccessRights::S, true)
        .with(AccessRights::P, true)
        .with(AccessRights::G, true)
        .with(AccessRights::DB, width == Width::Bits32)
        .with(AccessRights::L, width == Width::Bits64);
    Segment { base: 0, limit: u32::MAX, rights, selector }
}

fn segments(code: Width) -> [Segment; 8] {
    let data = flat(DATA, DATA_ACCESSED, Width::Bits32);
    let mut segments = [data; 8];
    segments[SegmentRegister::Cs as usize] = flat(CODE, CODE_ACCESSED, code);
    segments[SegmentRegister::Ldtr as usize] =
        Segment { rights: AccessRights::default().with(AccessRights::UNUSABLE, true), ..Segment::default() };
    let busy = AccessRights::default().with(AccessRights::TYPE, TASK_BUSY).with(AccessRights::P, true);
    segments[SegmentRegister::Tr as usize] =
        Segment { base: 0, limit: TASK_LIMIT, rights: busy, selector: TASK };
    segments
}

/// The segment's descriptor in memory. SDM Vol. 3, "Segment Descriptors".
fn descriptor(segment: Segment) -> u64 {
    let limit = if segment.rights.get(AccessRights::G) { segment.limit >> 12 } else { segment.limit };
    let (base, limit, rights) = (segment.base, u64::from(limit), u64::from(segment.rights.0));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (rights & 0xf0ff) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// Writes the GDT that the selectors refer to. The task-state descriptor takes two places in 64-bit mode.
fn install_gdt(memory: &GuestMemoryMmap, segments: &[Segment; 8]) -> Result<DescriptorTable, Problem> {
    let [code, data, task] = [SegmentRegister::Cs, SegmentRegister::Ds, SegmentRegister::Tr]
        .map(|register| descriptor(segments[register as usize]));
    let table = [0, 0, code, data, task, 0];
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    write(memory, place::GDT, &bytes)?;
    Ok(DescriptorTable { base: place::GDT, limit: bytes.len() as u16 - 1 })
}

/// Writes page tables that map the first 4 GiB to themselves in 2-MiB pages; returns CR3.
fn install_identity_map(memory: &GuestMemoryMmap) -> Result<u64, Problem> {
    let pml4 = place::PAGE_TABLES;
    let directory_pointers = pml4 + PAGE;
    let directories = directory_pointers + PAGE;
    let entries = |n: u64, entry: &dyn Fn(u64) -> u64| -> Vec<u8> {
        (0..n).flat_map(|i| entry(i).to_le_bytes()).collect()
    };
    write(memory, pml4, &entries(512, &|i| if i == 0 { directory_pointers | PRESENT_WRITABLE } else { 0 }))?;
    let pointer = |i| if i < IDENTITY_GIB { (directories + i * PAGE) | PRESENT_WRITABLE } else { 0 };
    write(memory, directory_pointers, &entries(512, &pointer))?;
    let leaf = |i| (i * LARGE_PAGE) | LARGE | PRESENT_WRITABLE;
    write(memory, directories, &entries(512 * IDENTITY_GIB, &leaf))?;
    Ok(pml4)
}

fn start(boot: &Boot<'_>, rip: u64, width: Width) -> Result<EntryState, Problem> {
    let segments = segments(width);
    let mut gpr = [0; 16];
    gpr[gpr::RSP] = place::STACK;
    Ok(EntryState {
        rip,
        gpr,
        rflags: RFLAGS_RESET,
        cr0: cr::cr0::PE | cr::cr0::ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        segments,
        gdtr: install_gdt(boot.memory, &segments)?,
        idtr: DescriptorTable::default(),
    })
}

/// 32-bit protected mode without paging, flat segments.
pub(super) fn protected_mode(boot: &Boot<'_>, rip: u64) -> Result<EntryState, Problem> {
    start(boot, rip, Width::Bits32)
}

/// 64-bit mode with the first 4 GiB identity-mapped, flat segments.
pub(super) fn long_mode(boot: &Boot<'_>, rip: u64) -> Result<EntryState, Problem> {
    let state = start(boot, rip, Width::Bits64)?;
    Ok(EntryState {
        cr0: state.cr0 | cr::cr0::PG | cr::cr0::WP | cr::cr0::NE | cr::cr0::MP,
        cr3: install_identity_map(boot.memory)?,
        cr4: cr::cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..state
    })
}

const _: () = {
    assert!(place::PAGE_TABLES + (2 + IDENTITY_GIB) * PAGE <= place::BOOT_INFO_TABLES);
    assert!(place::GDT + 48 <= place::BOOT_INFO && place::STACK < place::PAGE_TABLES);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_flat_segments() {
        assert_eq!(descriptor(flat(CODE, CODE_ACCESSED, Width::Bits64)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(flat(CODE, CODE_ACCESSED, Width::Bits32)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(flat(DATA, DATA_ACCESSED, Width::Bits32)), 0x00cf_9300_0000_ffff);
    }
}
