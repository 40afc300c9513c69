//! The guest's paging. SDM Vol. 3, "Paging".

use super::ept::{Mapping, Purpose};
use super::tlb::PageSize;
use super::{Fault, Kind, Privilege};
use crate::state::Cpu;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::{Exception, page_fault};
use vmcs12::arch::{efer, rflags};

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const XD: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PKEY_SHIFT: u32 = 59;

/// A linear page translated, with what it allows the current privilege.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    /// Machine-physical address of the 4-KiB page; a hole, if nothing backs it.
    pub pa: u64,
    pub size: PageSize,
    /// May be written without another walk: permitted, and every dirty flag is set.
    pub writable: bool,
    pub readable: bool,
    pub executable: bool,
    pub global: bool,
    pub user: bool,
}

/// How a paging mode walks.
struct Mode {
    levels: u32,
    /// Bits of the linear address that select an entry.
    index_bits: u32,
    wide: bool,
}

const MODE_32: Mode = Mode { levels: 2, index_bits: 10, wide: false };
const MODE_PAE: Mode = Mode { levels: 2, index_bits: 9, wide: true };
const MODE_4_LEVEL: Mode = Mode { levels: 4, index_bits: 9, wide: true };

/// The leaf that a walk found.
struct Leaf {
    at: Pa,
    gpa: u64,
    entry: u64,
    level: u32,
    shift: u32,
    /// AND of the R/W and U/S flags, OR of the XD flags.
    rights: u64,
}

impl Cpu {
    /// Translates a guest-physical page by EPT, or takes it as machine-physical without.
    #[inline]
    pub(crate) fn guest_physical(&mut self, gpa: u64, purpose: Purpose) -> Result<Mapping, Fault> {
        if !self.ept {
            return Ok(Mapping::identity(gpa & !0xfff));
        }
        let translated = self.guest_physical.translate(&self.memory, self.eptp, gpa, purpose);
        let Err(Fault::EptViolation { gpa, .. }) = translated else { return translated };
        self.hole(gpa).map_or(translated, |hole| Ok(Mapping::identity(hole.page().0)))
    }

    fn structure(&mut self, gpa: u64, linear: u64, kind: Kind) -> Result<Pa, Fault> {
        let purpose = Purpose { kind, linear: Some(linear), structure: true };
        Ok(Pa(self.guest_physical(gpa, purpose)?.pa | (gpa & 0xfff)))
    }

    /// Translates the page of a linear address for an access, setting accessed and dirty flags.
    pub(crate) fn walk(
        &mut self,
        linear: u64,
        kind: Kind,
        privilege: Privilege,
    ) -> Result<Translation, Fault> {
        if self.cr0 & cr0::PG == 0 {
            let gpa = linear & 0xffff_f000;
            let last = Purpose { kind, linear: Some(linear), structure: false };
            let mapping = self.guest_physical(gpa | (linear & 0xfff), last)?;
            return Ok(Translation {
                pa: mapping.pa,
                size: mapping.size,
                writable: mapping.writable,
                readable: mapping.readable,
                executable: mapping.executable,
                global: false,
                user: true,
            });
        }
        let leaf = self.find_leaf(linear, kind, privilege)?;
        self.check_rights(linear, &leaf, kind, privilege)?;
        let dirty = kind == Kind::Write;
        self.set_leaf_flags(linear, &leaf, if dirty { A | D } else { A })?;
        let offset = (1u64 << leaf.shift) - 1;
        let gpa = (self.leaf_address(&leaf) & !offset) | (linear & offset & !0xfff);
        let last = Purpose { kind, linear: Some(linear), structure: false };
        let mapping = self.guest_physical(gpa | (linear & 0xfff), last)?;
        let user = leaf.rights & US != 0;
        let size = match leaf.shift {
            12 => PageSize::Small,
            21 => PageSize::Large,
            _ => PageSize::Huge,
        };
        let may_write = self.check_rights(linear, &leaf, Kind::Write, privilege).is_ok();
        Ok(Translation {
            pa: mapping.pa,
            size,
            writable: mapping.writable && may_write && (dirty || leaf.entry & D != 0),
            readable: mapping.readable && self.check_rights(linear, &leaf, Kind::Read, privilege).is_ok(),
            executable: mapping.executable
                && self.check_rights(linear, &leaf, Kind::Fetch, privilege).is_ok(),
            global: leaf.entry & G != 0 && self.cr4 & cr4::PGE != 0,
            user,
        })
    }

    fn leaf_address(&self, leaf: &Leaf) -> u64 {
        let wide = self.cr4 & cr4::PAE != 0;
        match (wide, leaf.level) {
            (true, _) => leaf.entry & ADDRESS, // bit 12 of a large leaf (PAT) is dropped with the offset
            (false, 1) => leaf.entry & 0xffff_f000,
            // PSE-36: bits 20:13 of the entry are bits 39:32 of the address.
            (false, _) => (leaf.entry & 0xffc0_0000) | (leaf.entry & 0x1f_e000) << 19,
        }
    }

    fn find_leaf(&mut self, linear: u64, kind: Kind, privilege: Privilege) -> Result<Leaf, Fault> {
        let (mode, mut table, mut rights) = if self.efer & efer::LMA != 0 {
            (MODE_4_LEVEL, self.cr3 & ADDRESS, RW | US)
        } else if self.cr4 & cr4::PAE != 0 {
            let pdpte = self.pdpte[(linear >> 30) as usize & 3];
            if pdpte & P == 0 {
                return Err(self.page_fault(linear, kind, privilege, 0));
            }
            (MODE_PAE, pdpte & ADDRESS, RW | US)
        } else {
            (MODE_32, self.cr3 & 0xffff_f000, RW | US)
        };
        let mut level = mode.levels;
        loop {
            let shift = 12 + mode.index_bits * (level - 1);
            let index = linear >> shift & ((1 << mode.index_bits) - 1);
            let gpa = table + index * if mode.wide { 8 } else { 4 };
            let at = self.structure(gpa, linear, Kind::Read)?;
            let entry =
                if mode.wide { self.memory.read_u64(at) } else { u64::from(self.memory.read_u32(at)) };
            if entry & P == 0 {
                return Err(self.page_fault(linear, kind, privilege, 0));
            }
            let leaf =
                level == 1 || (level <= 3 && entry & PS != 0 && (mode.wide || self.cr4 & cr4::PSE != 0));
            if entry & self.reserved_bits(&mode, level, leaf) != 0 {
                return Err(self.page_fault(linear, kind, privilege, page_fault::P | page_fault::RSVD));
            }
            rights = (rights & entry & (RW | US)) | ((rights | entry) & XD);
            if leaf {
                return Ok(Leaf { at, gpa, entry, level, shift, rights });
            }
            if entry & A == 0 {
                let at = self.structure(gpa, linear, Kind::Write)?;
                self.set_entry_flags(at, A);
            }
            table = if mode.wide { entry & ADDRESS } else { entry & 0xffff_f000 };
            level -= 1;
        }
    }

    /// Reserved bits of a present entry. SDM Vol. 3, "Reserved Bits" of each paging mode.
    fn reserved_bits(&self, mode: &Mode, level: u32, leaf: bool) -> u64 {
        if !mode.wide {
            return if leaf && level == 2 { 1 << 21 } else { 0 };
        }
        let beyond_width = ADDRESS & !((1u64 << self.model.physical_width) - 1);
        let no_xd = if self.efer & efer::NXE == 0 { XD } else { 0 };
        let pae_high = if self.efer & efer::LMA == 0 { 0x7ff0_0000_0000_0000 } else { 0 };
        let size = match (leaf, level) {
            (true, 2) => 0x1f_e000,
            (true, 3) => 0x3fff_e000,
            (false, 4) => PS,
            _ => 0,
        };
        beyond_width | no_xd | pae_high | size
    }

    fn page_fault(&self, linear: u64, kind: Kind, privilege: Privilege, bits: u32) -> Fault {
        let mut code = bits;
        if kind == Kind::Write {
            code |= page_fault::W;
        }
        if privilege == Privilege::User {
            code |= page_fault::U;
        }
        let nx_or_smep =
            (self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0) || self.cr4 & cr4::SMEP != 0;
        if kind == Kind::Fetch && nx_or_smep {
            code |= page_fault::I;
        }
        Fault::Exception(Exception::pf(linear, code))
    }

    /// SDM Vol. 3, "Determination of Access Rights".
    fn check_rights(&self, linear: u64, leaf: &Leaf, kind: Kind, privilege: Privilege) -> Result<(), Fault> {
        let (user_page, writable) = (leaf.rights & US != 0, leaf.rights & RW != 0);
        let refuse = |bits: u32| Err(self.page_fault(linear, kind, privilege, page_fault::P | bits));
        let executable = leaf.rights & XD == 0 || self.efer & efer::NXE == 0;
        let wp = self.cr0 & cr0::WP != 0;
        if privilege == Privilege::User {
            let allowed = user_page
                && match kind {
                    Kind::Read => true,
                    Kind::Write => writable,
                    Kind::Fetch => executable,
                };
            if !allowed {
                return refuse(0);
            }
        } else {
            let smap = self.cr4 & cr4::SMAP != 0
                && user_page
                && (privilege == Privilege::Implicit || self.rflags & rflags::AC == 0);
            let allowed = match kind {
                Kind::Read => !smap,
                Kind::Write => !smap && (writable || !wp),
                Kind::Fetch => executable && !(user_page && self.cr4 & cr4::SMEP != 0),
            };
            if !allowed {
                return refuse(0);
            }
        }
        if user_page && kind != Kind::Fetch && self.cr4 & cr4::PKE != 0 && self.efer & efer::LMA != 0 {
            let key = (leaf.entry >> PKEY_SHIFT & 15) as u32;
            let rights = self.pkru >> (2 * key);
            let write_disabled = rights & 2 != 0 && (privilege == Privilege::User || wp);
            if rights & 1 != 0 || (kind == Kind::Write && write_disabled) {
                return refuse(page_fault::PK);
            }
        }
        Ok(())
    }

    fn set_leaf_flags(&mut self, linear: u64, leaf: &Leaf, flags: u64) -> Result<(), Fault> {
        if leaf.entry & flags == flags {
            return Ok(());
        }
        // The update is a guest write: EPT must allow it.
        if self.ept {
            self.structure(leaf.gpa, linear, Kind::Write)?;
        }
        self.set_entry_flags(leaf.at, flags);
        Ok(())
    }

    fn set_entry_flags(&self, at: Pa, flags: u64) {
        let aligned = Pa(at.0 & !7);
        let shift = (at.0 & 4) * 8;
        let mut seen = self.memory.read_u64(aligned);
        while seen >> shift & flags != flags {
            let was = self.memory.compare_exchange_u64(aligned, seen, seen | flags << shift);
            if was == seen {
                break;
            }
            seen = was;
        }
    }

    /// Loads the four PDPTEs that CR3 points to. SDM Vol. 3, "PDPTE Registers". `None`: a reserved bit is set.
    ///
    /// # Errors
    /// The exit that reading them takes.
    pub(crate) fn read_pdptes(&mut self, cr3: u64) -> Result<Option<[u64; 4]>, Fault> {
        let gpa = cr3 & 0xffff_ffe0;
        let mapping =
            self.guest_physical(gpa, Purpose { kind: Kind::Read, linear: None, structure: false })?;
        let at = Pa(mapping.pa | (gpa & 0xfff));
        let entries: [u64; 4] = std::array::from_fn(|i| self.memory.read_u64(at.plus(8 * i as u64)));
        let beyond_width = !((1u64 << self.model.physical_width) - 1);
        let reserved = 0x1e6 | beyond_width;
        let valid = entries.iter().all(|entry| entry & P == 0 || entry & reserved == 0);
        Ok(valid.then_some(entries))
    }
}
