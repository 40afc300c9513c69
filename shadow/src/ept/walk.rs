//! The walk of ept12 in L1's memory. SDM Vol. 3, "EPT Translation Mechanism", "EPT-Induced VM Exits".

use crate::ept01::Ept01;
use vmcs12::addr::{Gpa, Ngpa, Pa, Physical};
use vmcs12::arch::eptp::{EptEntry, Eptp};
use vmcs12::caps::{Capabilities, EptVpidCap};
use vmcs12::exit::qualification::EptViolation;

/// A level of the EPT paging structures; 1 is the table of 4-KByte pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Level(pub u8);

impl Level {
    /// 4-KByte pages.
    pub const PT: Self = Self(1);
    /// 2-MByte pages.
    pub const PD: Self = Self(2);
    /// 1-GByte pages.
    pub const PDPT: Self = Self(3);
    /// The deepest walk.
    pub const MAX: usize = 5;

    /// The lowest address bit that selects an entry at this level.
    const fn shift(self) -> u32 {
        12 + 9 * (self.0 as u32 - 1)
    }
    /// Bytes that one entry covers.
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }
    /// The address of the entry for `at` in the table at `table`.
    pub const fn entry(self, table: u64, at: Ngpa) -> u64 {
        table + ((at.0 >> self.shift()) & 0x1ff) * 8
    }
    /// The next level down.
    pub const fn below(self) -> Self {
        Self(self.0 - 1)
    }
}

/// Read, write, execute: bits 2:0 of an entry, and bits 2:0 and 5:3 of the qualification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rights(u8);

impl Rights {
    /// All of them.
    pub const ALL: Self = Self(0b111);
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Read alone.
    pub const READ: Self = Self(0b001);
    /// Write alone.
    pub const WRITE: Self = Self(0b010);
    /// Execute alone.
    pub const EXECUTE: Self = Self(0b100);

    /// What an entry allows.
    #[inline]
    pub fn of(entry: EptEntry) -> Self {
        Self((entry.0 & 0b111) as u8)
    }
    /// What both allow.
    #[inline]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// What either allows.
    #[inline]
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// These without some.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Are all of these among them?
    #[inline]
    pub fn cover(self, wanted: Self) -> bool {
        wanted.0 & !self.0 == 0
    }
    /// As bits.
    pub fn bits(self) -> u8 {
        self.0
    }
}

/// What the access that an EPT violation tells of needs.
impl From<EptViolation> for Rights {
    fn from(stopped: EptViolation) -> Self {
        let needs = |access, right: Self| if stopped.get(access) { right } else { Self::NONE };
        needs(EptViolation::DATA_READ, Self::READ)
            .or(needs(EptViolation::DATA_WRITE, Self::WRITE))
            .or(needs(EptViolation::INSTRUCTION_FETCH, Self::EXECUTE))
    }
}

/// What entries of ept12 may hold, by the capabilities that L1 sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    execute_only: bool,
    page_2m: bool,
    page_1g: bool,
    beyond_width: u64,
}

impl Format {
    /// By what L1's capability MSRs say.
    pub fn new(offered: &Capabilities) -> Self {
        Self {
            execute_only: offered.ept_vpid.get(EptVpidCap::EXECUTE_ONLY),
            page_2m: offered.ept_vpid.get(EptVpidCap::PAGE_2M),
            page_1g: offered.ept_vpid.get(EptVpidCap::PAGE_1G),
            beyond_width: offered.beyond_physical_width() & EptEntry::FRAME.mask(),
        }
    }

    /// Does the present entry at this level map a page?
    fn is_leaf(self, entry: EptEntry, level: Level) -> bool {
        level == Level::PT || (entry.get(EptEntry::LARGE) && self.has_large(level))
    }

    fn has_large(self, level: Level) -> bool {
        (level == Level::PD && self.page_2m) || (level == Level::PDPT && self.page_1g)
    }

    /// SDM Vol. 3, "EPT Misconfigurations".
    fn is_misconfigured(self, entry: EptEntry, level: Level) -> bool {
        let write_only = !entry.get(EptEntry::READ) && entry.get(EptEntry::WRITE);
        let execute_only = Rights::of(entry) == Rights::EXECUTE;
        write_only
            || (execute_only && !self.execute_only)
            || entry.0 & self.beyond_width != 0
            || if self.is_leaf(entry, level) {
                let beside_frame = (level.size() - 1) & EptEntry::FRAME.mask();
                entry.0 & beside_frame != 0 || matches!(entry.get(EptEntry::MEMORY_TYPE), 2 | 3 | 7)
            } else {
                entry.0 & NON_LEAF_RESERVED != 0
            }
    }
}

/// Bits 7:3 of an entry that points to a table.
const NON_LEAF_RESERVED: u64 = 0xf8;

/// The page that ept12 maps at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The leaf entry.
    pub entry: EptEntry,
    /// Its level, which gives the page's size.
    pub level: Level,
    /// What all entries allow, less what the dirty flag has to see first.
    pub rights: Rights,
}

impl Leaf {
    /// The L1-physical address of a byte of the page.
    pub fn target(&self, at: Ngpa) -> Gpa {
        let inside = self.level.size() - 1;
        Gpa((self.entry.0 & EptEntry::FRAME.mask() & !inside) | (at.0 & inside))
    }
}

/// How a walk ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// The access is allowed; accessed and dirty flags are set.
    Allowed(Leaf),
    /// An EPT violation; the rights are the AND of the entries used, none if the walk did not finish.
    Denied(Rights),
    /// An EPT misconfiguration.
    Misconfigured,
}

/// The entries that a walk used, for the accessed and dirty flags.
struct Used {
    at: [Pa; Level::MAX],
    len: usize,
}

impl Used {
    fn push(&mut self, at: Pa) {
        self.at[self.len] = at;
        self.len += 1;
    }
}

/// Walks ept12 for an access to `at`. Nothing changes unless the access is allowed.
pub fn walk<P: Physical>(
    memory: &P,
    ept01: &Ept01,
    format: Format,
    eptp12: Eptp,
    at: Ngpa,
    access: Rights,
) -> Walk {
    let top = Level(eptp12.get(Eptp::WALK_LENGTH_MINUS_1).clamp(3, 4) + 1);
    if at.0 >> (top.shift() + 9) != 0 {
        return Walk::Denied(Rights::NONE);
    }
    let (mut table, mut level, mut rights) = (Gpa(eptp12.root().0), top, Rights::ALL);
    let mut used = Used { at: [Pa(0); Level::MAX], len: 0 };
    loop {
        let place = ept01.machine(Gpa(level.entry(table.0, at)));
        let entry = EptEntry(memory.read_u64(place));
        if Rights::of(entry) == Rights::NONE {
            return Walk::Denied(Rights::NONE);
        }
        if format.is_misconfigured(entry, level) {
            return Walk::Misconfigured;
        }
        rights = rights.and(Rights::of(entry));
        used.push(place);
        if format.is_leaf(entry, level) {
            if !rights.cover(access) {
                return Walk::Denied(rights);
            }
            let leaf = Leaf { entry, level, rights };
            return Walk::Allowed(match eptp12.get(Eptp::ACCESSED_DIRTY) {
                true => flagged(memory, &used, leaf, access),
                false => leaf,
            });
        }
        table = Gpa(entry.0 & EptEntry::FRAME.mask());
        level = level.below();
    }
}

/// Sets the accessed flags and, for a write, the dirty flag. A page that is not dirty yet is not writable in ept02,
/// so that the first write comes back here. SDM Vol. 3, "Accessed and Dirty Flags for EPT".
fn flagged<P: Physical>(memory: &P, used: &Used, leaf: Leaf, access: Rights) -> Leaf {
    let writes = access.cover(Rights::WRITE);
    for (i, &place) in used.at[..used.len].iter().enumerate() {
        let is_leaf = i + 1 == used.len;
        set_bits(
            memory,
            place,
            EptEntry::ACCESSED.mask() | if is_leaf && writes { EptEntry::DIRTY.mask() } else { 0 },
        );
    }
    let dirty = writes || leaf.entry.get(EptEntry::DIRTY);
    Leaf { rights: if dirty { leaf.rights } else { leaf.rights.without(Rights::WRITE) }, ..leaf }
}

/// Sets bits of an entry with a locked access. Another vCPU that keeps writing it can win a few times, not for ever.
fn set_bits<P: Physical>(memory: &P, at: Pa, bits: u64) {
    const ATTEMPTS: usize = 8;
    for _ in 0..ATTEMPTS {
        let old = memory.read_u64(at);
        if old & bits == bits || memory.compare_exchange_u64(at, old, old | bits) == old {
            return;
        }
    }
}
