//! The EPT walk. SDM Vol. 3, "EPT Translation Mechanism", "EPT-Induced VM Exits".

use super::memory::Memory;
use super::tlb::PageSize;
use super::{Fault, Kind};
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::eptp::{EptEntry, Eptp, memory_type};

/// Bits 2:0 of an entry: read, write, execute.
const PERMISSIONS: u64 = 7;
const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;
/// Bits 7:3 of an entry that points to a table.
const NON_LEAF_RESERVED: u64 = 0xf8;

/// Exit qualification of an EPT violation. SDM Vol. 3, "Exit Qualification for EPT Violations".
pub(crate) mod qualification {
    pub const PERMISSIONS_SHIFT: u32 = 3;
    pub const LINEAR_VALID: u64 = 1 << 7;
    pub const FINAL_TRANSLATION: u64 = 1 << 8;
}

/// What a guest-physical access is for.
#[derive(Clone, Copy)]
pub(crate) struct Purpose {
    pub kind: Kind,
    /// The linear address being translated, if any.
    pub linear: Option<u64>,
    /// An access to a guest paging-structure entry, not to the translation of the linear address.
    pub structure: bool,
}

/// A guest-physical translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub pa: u64,
    pub size: PageSize,
    pub writable: bool,
    pub executable: bool,
    pub readable: bool,
}

impl Mapping {
    /// Without EPT a guest-physical address is machine-physical.
    pub fn identity(page: u64) -> Self {
        Self { pa: page, size: PageSize::Huge, readable: true, writable: true, executable: true }
    }
}

const CACHE: usize = 512;

#[derive(Clone, Copy)]
struct Cached {
    gpa: u64,
    root: u64,
    mapping: Mapping,
}

/// Guest-physical mappings that have been used, by (page, EPT root).
pub(crate) struct GuestPhysical {
    cached: Box<[Option<Cached>; CACHE]>,
}

impl GuestPhysical {
    pub fn new() -> Self {
        Self { cached: Box::new([None; CACHE]) }
    }

    /// INVEPT.
    pub fn clear(&mut self) {
        self.cached.fill(None);
    }

    fn slot(gpa: u64, root: u64) -> usize {
        ((gpa >> 12) ^ (gpa >> 21) ^ (root >> 12)) as usize & (CACHE - 1)
    }

    /// Translates the page of `gpa` for an access, or says which exit the access takes.
    #[inline]
    pub fn translate(
        &mut self,
        memory: &Memory,
        eptp: Eptp,
        gpa: u64,
        purpose: Purpose,
    ) -> Result<Mapping, Fault> {
        let root = eptp.root().0;
        let slot = Self::slot(gpa, root);
        if let Some(cached) = &self.cached[slot]
            && cached.gpa == gpa & !0xfff
            && cached.root == root
        {
            let mapping = cached.mapping;
            let allowed = match purpose.kind {
                Kind::Read => {
                    mapping.readable
                        && (!eptp.get(Eptp::ACCESSED_DIRTY) || !purpose.structure || mapping.writable)
                }
                Kind::Write => mapping.writable,
                Kind::Fetch => mapping.executable,
            };
            if allowed {
                return Ok(mapping);
            }
        }
        let mapping = walk(memory, eptp, gpa, purpose)?;
        self.cached[slot] = Some(Cached { gpa: gpa & !0xfff, root, mapping });
        Ok(mapping)
    }
}

/// With accessed and dirty flags, an access to a guest paging structure counts as a write.
/// SDM Vol. 3, "Accessed and Dirty Flags for EPT".
fn needed(eptp: Eptp, purpose: Purpose) -> u64 {
    match purpose.kind {
        Kind::Fetch => EXECUTE,
        Kind::Write => WRITE,
        Kind::Read if purpose.structure && eptp.get(Eptp::ACCESSED_DIRTY) => READ | WRITE,
        Kind::Read => READ,
    }
}

fn violation(gpa: u64, purpose: Purpose, needed: u64, permissions: u64) -> Fault {
    let translation = match purpose.linear {
        Some(_) if purpose.structure => qualification::LINEAR_VALID,
        Some(_) => qualification::LINEAR_VALID | qualification::FINAL_TRANSLATION,
        None => 0,
    };
    let qualification = needed | permissions << qualification::PERMISSIONS_SHIFT | translation;
    Fault::EptViolation { qualification, gpa, linear: purpose.linear }
}

/// Is a present entry misconfigured? The machine's width is 52 bits, so no address bit is reserved; execute-only
/// pages and all page sizes are supported. SDM Vol. 3, "EPT Misconfigurations".
fn misconfigured(entry: u64, level: u32) -> bool {
    let leaf = is_leaf(entry, level);
    let offset = match level {
        3 => 0x3fff_f000,
        2 => 0x1f_f000,
        _ => 0,
    };
    let kind = EptEntry(entry).get(EptEntry::MEMORY_TYPE);
    let valid_type = matches!(
        kind,
        memory_type::UC | memory_type::WC | memory_type::WT | memory_type::WP | memory_type::WB
    );
    entry & (READ | WRITE) == WRITE
        || (leaf && (entry & offset != 0 || !valid_type))
        || (!leaf && entry & NON_LEAF_RESERVED != 0)
}

fn is_leaf(entry: u64, level: u32) -> bool {
    level == 1 || (level <= 3 && EptEntry(entry).get(EptEntry::LARGE))
}

fn set_flags(memory: &Memory, at: Pa, entry: u64, flags: u64) {
    let mut seen = entry;
    while seen & flags != flags {
        let was = memory.compare_exchange_u64(at, seen, seen | flags);
        if was == seen {
            break;
        }
        seen = was;
    }
}

fn walk(memory: &Memory, eptp: Eptp, gpa: u64, purpose: Purpose) -> Result<Mapping, Fault> {
    let needed = needed(eptp, purpose);
    if gpa >> 48 != 0 {
        return Err(violation(gpa, purpose, needed, 0));
    }
    let accessed_dirty = eptp.get(Eptp::ACCESSED_DIRTY);
    let mut path = [(Pa(0), 0u64); 4];
    let mut table = eptp.root();
    let mut permissions = PERMISSIONS;
    for level in (1..=4u32).rev() {
        let shift = 12 + 9 * (level - 1);
        let at = table.plus((gpa >> shift & 0x1ff) * 8);
        let entry = memory.read_u64(at);
        if entry & PERMISSIONS == 0 {
            return Err(violation(gpa, purpose, needed, 0));
        }
        if misconfigured(entry, level) || (level == 4 && EptEntry(entry).get(EptEntry::LARGE)) {
            return Err(Fault::EptMisconfiguration { gpa });
        }
        permissions &= entry;
        path[level as usize - 1] = (at, entry);
        if !is_leaf(entry, level) {
            table = Pa(entry & EptEntry::FRAME.mask());
            continue;
        }
        if permissions & needed != needed {
            return Err(violation(gpa, purpose, needed, permissions));
        }
        let write = needed & WRITE != 0;
        if accessed_dirty {
            let accessed = EptEntry::ACCESSED.mask();
            path[level as usize..].iter().for_each(|&(at, entry)| set_flags(memory, at, entry, accessed));
            set_flags(memory, at, entry, if write { accessed | EptEntry::DIRTY.mask() } else { accessed });
        }
        let dirty = write || EptEntry(entry).get(EptEntry::DIRTY);
        let offset = (1u64 << shift) - 1;
        return Ok(Mapping {
            pa: (entry & EptEntry::FRAME.mask() & !offset) | (gpa & offset & !0xfff),
            size: [PageSize::Small, PageSize::Large, PageSize::Huge][level as usize - 1],
            readable: permissions & READ != 0,
            writable: permissions & WRITE != 0 && (!accessed_dirty || dirty),
            executable: permissions & EXECUTE != 0,
        });
    }
    unreachable!("the entry at level 1 is a leaf");
}
