//! CPUID as a table of leaves. SDM Vol. 2, "CPUID—CPU Identification".

use crate::arch::cr::cr4;

/// The four registers that CPUID returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "one register each")]
pub struct Registers {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// One of the four registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "one register each")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Registers {
    /// A register's value.
    pub const fn get(self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }
    /// A register's place.
    pub const fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// Leaf numbers.
#[allow(missing_docs, reason = "the manual's own names")]
pub mod leaf {
    pub const VENDOR: u32 = 0x0;
    pub const FEATURES: u32 = 0x1;
    pub const CACHES: u32 = 0x4;
    pub const MONITOR: u32 = 0x5;
    pub const POWER: u32 = 0x6;
    pub const EXTENDED_FEATURES: u32 = 0x7;
    pub const TOPOLOGY: u32 = 0xb;
    pub const XSAVE: u32 = 0xd;
    pub const TSC: u32 = 0x15;
    pub const FREQUENCY: u32 = 0x16;
    pub const TLB: u32 = 0x18;
    pub const TOPOLOGY_V2: u32 = 0x1f;
    pub const EXTENDED: u32 = 0x8000_0000;
    pub const EXTENDED_SIGNATURE: u32 = 0x8000_0001;
    pub const ADVANCED_POWER: u32 = 0x8000_0007;
    pub const ADDRESS_SIZES: u32 = 0x8000_0008;
}

/// Leaves whose result depends on ECX.
#[rustfmt::skip]
const INDEXED: &[u32] = &[
    0x4, 0x7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1a, 0x1b, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x23, 0x24, 0x27,
    0x28, 0x29,
];

/// The registers on which CPUID's result depends.
#[derive(Clone, Copy, Debug)]
pub struct CpuidState {
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// The x2APIC identifier.
    pub apic_id: u32,
    /// Is the local APIC enabled in IA32_APIC_BASE?
    pub apic_enabled: bool,
    /// Does CPUID run in 64-bit mode?
    pub is_64_bit: bool,
}

/// Bit 27 of CPUID.1:ECX and bit 4 of CPUID.7:ECX: CR4.OSXSAVE and CR4.PKE read back.
const OSXSAVE: u32 = 1 << 27;
const OSPKE: u32 = 1 << 4;
/// Bit 9 of CPUID.1:EDX: the local APIC is there and enabled.
const APIC: u32 = 1 << 9;
/// Bit 11 of CPUID.80000001H:EDX: SYSCALL, seen in 64-bit mode alone.
const SYSCALL: u32 = 1 << 11;

/// XSAVE-managed state components. SDM Vol. 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features".
pub mod component {
    /// x87.
    pub const X87: u64 = 1 << 0;
    /// SSE.
    pub const SSE: u64 = 1 << 1;
    /// AVX.
    pub const AVX: u64 = 1 << 2;
    /// PKRU.
    pub const PKRU: u64 = 1 << 9;
}

/// The legacy region and the header of an XSAVE area. SDM Vol. 1, "XSAVE Area".
const XSAVE_BASE: u32 = 576;

/// A row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// EAX at CPUID.
    pub leaf: u32,
    /// ECX at CPUID; 0 for leaves that do not look at it.
    pub subleaf: u32,
    /// The result, but for what depends on [`CpuidState`].
    pub registers: Registers,
}

/// CPUID's results, in the order of leaf and subleaf.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuidTable {
    rows: Vec<Row>,
}

impl CpuidTable {
    /// A table of these rows; of two rows with the same leaf and subleaf the first counts.
    pub fn new(mut rows: Vec<Row>) -> Self {
        rows.sort_by_key(|row| (row.leaf, row.subleaf));
        rows.dedup_by_key(|row| (row.leaf, row.subleaf));
        Self { rows }
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn position(&self, leaf: u32, subleaf: u32) -> Result<usize, usize> {
        self.rows.binary_search_by_key(&(leaf, subleaf), |row| (row.leaf, row.subleaf))
    }

    /// A row's registers; zero if there is no row.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Registers {
        self.position(leaf, subleaf).map_or_else(|_| Registers::default(), |at| self.rows[at].registers)
    }

    /// A row's registers, to be changed; the row is made if there is none.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> &mut Registers {
        let at = self.position(leaf, subleaf).unwrap_or_else(|at| {
            self.rows.insert(at, Row { leaf, subleaf, registers: Registers::default() });
            at
        });
        &mut self.rows[at].registers
    }

    /// Keeps the rows for which `keep` holds.
    pub fn retain(&mut self, keep: impl FnMut(&Row) -> bool) {
        self.rows.retain(keep);
    }

    /// The leaf that answers: beyond the highest one Intel's processors return the highest basic leaf.
    fn answering(&self, leaf: u32) -> u32 {
        let highest_basic = self.get(leaf::VENDOR, 0).eax;
        let is_basic = leaf <= highest_basic;
        let is_extended = (leaf::EXTENDED..=self.get(leaf::EXTENDED, 0).eax).contains(&leaf);
        if is_basic || is_extended { leaf } else { highest_basic }
    }

    /// What CPUID returns.
    pub fn query(&self, leaf: u32, subleaf: u32, state: &CpuidState) -> Registers {
        let leaf = self.answering(leaf);
        let subleaf = if INDEXED.contains(&leaf) { subleaf } else { 0 };
        let mut registers = self.get(leaf, subleaf);
        match (leaf, subleaf) {
            (leaf::FEATURES, _) => {
                registers.ebx = (registers.ebx & 0x00ff_ffff) | state.apic_id << 24;
                set(&mut registers.ecx, OSXSAVE, state.cr4 & cr4::OSXSAVE != 0);
                if !state.apic_enabled {
                    registers.edx &= !APIC;
                }
            }
            (leaf::EXTENDED_FEATURES, 0) => set(&mut registers.ecx, OSPKE, state.cr4 & cr4::PKE != 0),
            (leaf::TOPOLOGY | leaf::TOPOLOGY_V2, _) if self.get(leaf, 0).ebx != 0 => {
                registers.ecx = (registers.ecx & !0xff) | (subleaf & 0xff);
                registers.edx = state.apic_id;
            }
            (leaf::XSAVE, 0) if registers.eax != 0 => registers.ebx = self.standard_size(state.xcr0),
            (leaf::XSAVE, 1) if registers.eax & COMPACTS != 0 => {
                registers.ebx = self.compacted_size(state.xcr0 | state.xss);
            }
            (leaf::EXTENDED_SIGNATURE, _) if !state.is_64_bit => registers.edx &= !SYSCALL,
            _ => {}
        }
        registers
    }

    /// The size and the offset of each component beyond x87 and SSE that is in `components`.
    fn extended_components(&self, components: u64) -> impl Iterator<Item = Registers> + '_ {
        (2..63).filter(move |bit| components & (1 << bit) != 0).map(|bit| self.get(leaf::XSAVE, bit))
    }

    /// Bytes of an XSAVE area in the standard format. SDM Vol. 1, "XSAVE Area".
    pub fn standard_size(&self, components: u64) -> u32 {
        self.extended_components(components)
            .map(|area| area.ebx.saturating_add(area.eax))
            .fold(XSAVE_BASE, u32::max)
    }

    /// Bytes of an XSAVE area in the compacted format. SDM Vol. 1, "Compacted Format".
    pub fn compacted_size(&self, components: u64) -> u32 {
        self.extended_components(components).fold(XSAVE_BASE, |end, area| {
            let aligned = end.checked_next_multiple_of(64).unwrap_or(u32::MAX);
            let start = if area.ecx & ALIGNED != 0 { aligned } else { end };
            start.saturating_add(area.eax)
        })
    }
}

/// CPUID.(EAX=0DH,ECX=1):EAX: XSAVEC or XSAVES, which write the compacted format.
const COMPACTS: u32 = 1 << 1 | 1 << 3;
/// CPUID.(EAX=0DH,ECX=n):ECX: the component is 64-byte aligned in the compacted format.
const ALIGNED: u32 = 1 << 1;

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}
