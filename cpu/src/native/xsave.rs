//! The XSAVE area: what XSAVE, XSAVEOPT, XSAVEC and XSAVES write, and XRSTOR and XRSTORS accept.
//! SDM Vol. 1, "Managing State Using the XSAVE Feature Set".

use super::fxsave::{self, PointerWidth};
use super::simd::MXCSR_MASK;
use super::software::{Restore, Save};
use super::x87;
use std::ops::Range;
use vmcs12::cpu_state::VectorState;

/// Bits of XCR0 and of the state-component bitmaps.
#[allow(missing_docs, reason = "the manual's own names")]
pub mod component {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const PKRU: u64 = 1 << 9;
    /// Every component that is implemented; no supervisor component is.
    pub const ALL: u64 = X87 | SSE | AVX | PKRU;
}

/// A component outside the legacy region, as CPUID leaf 0DH enumerates it.
#[derive(Clone, Copy, Debug)]
pub struct Extended {
    /// Its bit.
    pub component: u64,
    /// Where the standard format has it.
    pub offset: usize,
    /// Its length.
    pub size: usize,
}

/// The extended components, in the order of their bits; none needs alignment in the compacted format.
#[rustfmt::skip]
pub const EXTENDED: [Extended; 2] = [
    Extended { component: component::AVX,  offset: 576,  size: 256 },
    Extended { component: component::PKRU, offset: 2688, size: 8 },
];

/// The legacy region and the header.
const HEADER: Range<usize> = 512..576;
const XSTATE_BV: Range<usize> = 512..520;
const XCOMP_BV: Range<usize> = 520..528;
/// XCOMP_BV bit 63: the compacted format.
const COMPACTED: u64 = 1 << 63;
/// Length of the legacy region and the header, which every area has.
pub const AREA_LEGACY: usize = HEADER.end;
/// Length of the longest area.
pub const AREA: usize = EXTENDED[1].offset + EXTENDED[1].size;
const INITIAL_MXCSR: u32 = 0x1f80;

/// Length of the standard format with these components. CPUID leaf 0DH, EBX.
pub fn standard_len(components: u64) -> usize {
    let ends = EXTENDED.iter().filter(|at| components & at.component != 0).map(|at| at.offset + at.size);
    ends.max().unwrap_or(HEADER.end)
}

/// Length of the compacted format with these components. CPUID leaf 0DH, sub-leaf 1, EBX.
pub fn compacted_len(components: u64) -> usize {
    let sizes = EXTENDED.iter().filter(|at| components & at.component != 0).map(|at| at.size);
    HEADER.end + sizes.sum::<usize>()
}

/// The registers that the area holds, and how many XMM and YMM registers the mode has: 16 or 8.
#[derive(Clone, Copy)]
pub struct Registers<'a> {
    /// x87, SSE and AVX.
    pub vector: &'a VectorState,
    /// PKRU.
    pub pkru: u32,
    /// 16 in 64-bit mode, else 8.
    pub count: usize,
}

/// An XSAVE area, of which some byte ranges count.
pub struct Area {
    /// The bytes.
    pub bytes: [u8; AREA],
    /// What to write to memory, or to read from it.
    pub ranges: Vec<Range<usize>>,
}

/// The components that are not in their initial configuration. SDM Vol. 1, "Processor Tracking of
/// XSAVE-Managed State"; the values are compared, so this is as precise as the manual allows.
pub fn in_use(registers: Registers<'_>) -> u64 {
    let vector = registers.vector;
    let mut initial = VectorState { mxcsr: vector.mxcsr, ymm: vector.ymm, ..VectorState::default() };
    initialize_x87(&mut initial);
    let used = |component, is_used| if is_used { component } else { 0 };
    used(component::X87, *vector != initial)
        | used(component::SSE, vector.ymm.iter().any(|ymm| ymm[..16] != [0; 16]))
        | used(component::AVX, vector.ymm.iter().any(|ymm| ymm[16..] != [0; 16]))
        | used(component::PKRU, registers.pkru != 0)
}

/// What the instruction writes. `requested` is EDX:EAX and XCR0 (for XSAVES: or IA32_XSS); `old_bitmap` is
/// XSTATE_BV in memory, which XSAVE and XSAVEOPT merge with.
pub fn save(
    save: Save,
    width: PointerWidth,
    requested: u64,
    old_bitmap: u64,
    registers: Registers<'_>,
) -> Area {
    let compacted = matches!(save, Save::Xsavec | Save::Xsaves);
    let mut used = in_use(registers);
    if compacted && registers.vector.mxcsr != INITIAL_MXCSR {
        used |= component::SSE;
    }
    let written = if save == Save::Xsave { requested } else { requested & used };
    let with_mxcsr =
        if compacted { written & component::SSE } else { requested & (component::SSE | component::AVX) };
    let mut area = Area { bytes: [0; AREA], ranges: Vec::with_capacity(8) };
    save_legacy(&mut area, width, written, with_mxcsr != 0, registers);
    for (extended, at) in layout(if compacted { Some(requested) } else { None }) {
        if written & extended.component != 0 {
            save_extended(&mut area, extended, at, registers);
        }
    }
    let kept = if compacted { 0 } else { old_bitmap & !requested };
    area.put(XSTATE_BV, &(kept | requested & used).to_le_bytes());
    if compacted {
        area.put(XCOMP_BV, &(requested | COMPACTED).to_le_bytes());
    }
    area
}

impl Area {
    fn put(&mut self, range: Range<usize>, bytes: &[u8]) {
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.ranges.push(range);
    }
}

fn save_legacy(
    area: &mut Area,
    width: PointerWidth,
    written: u64,
    with_mxcsr: bool,
    registers: Registers<'_>,
) {
    let mut legacy = [0; fxsave::LEN];
    if written & component::X87 != 0 {
        fxsave::put_x87(registers.vector, width, &mut legacy);
        area.ranges.extend(X87_RANGES);
    }
    if with_mxcsr {
        fxsave::put_mxcsr(registers.vector, &mut legacy);
        area.ranges.push(MXCSR_RANGE);
    }
    if written & component::SSE != 0 {
        fxsave::put_xmm(registers.vector, registers.count, &mut legacy);
        area.ranges.push(xmm_range(registers.count));
    }
    area.bytes[..fxsave::LEN].copy_from_slice(&legacy);
}

const X87_RANGES: [Range<usize>; 2] = [0..24, 32..160];
const MXCSR_RANGE: Range<usize> = 24..32;

fn xmm_range(count: usize) -> Range<usize> {
    fxsave::XMM..fxsave::XMM + 16 * count
}

fn save_extended(area: &mut Area, extended: Extended, at: usize, registers: Registers<'_>) {
    if extended.component == component::PKRU {
        area.put(at..at + extended.size, &u64::from(registers.pkru).to_le_bytes());
        return;
    }
    for (i, ymm) in registers.vector.ymm.iter().enumerate().take(registers.count) {
        area.bytes[at + 16 * i..at + 16 * (i + 1)].copy_from_slice(&ymm[16..]);
    }
    area.ranges.push(at..at + 16 * registers.count);
}

/// Where each extended component is: in the compacted format with these components, or in the standard one.
fn layout(compacted: Option<u64>) -> impl Iterator<Item = (Extended, usize)> {
    let mut next = HEADER.end;
    EXTENDED.into_iter().map(move |extended| match compacted {
        None => (extended, extended.offset),
        Some(components) => {
            let at = next;
            next += if components & extended.component != 0 { extended.size } else { 0 };
            (extended, at)
        }
    })
}

/// The header of an area to be restored, found to be good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// XSTATE_BV.
    present: u64,
    /// XCOMP_BV without bit 63, if the format is compacted.
    compacted: Option<u64>,
}

/// #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

impl Header {
    /// Checks the 64 bytes of a header. `enabled` is XCR0, for XRSTORS together with IA32_XSS.
    /// SDM Vol. 1, "Operation of XRSTOR" and "Operation of XRSTORS".
    ///
    /// # Errors
    /// #GP(0).
    pub fn check(restore: Restore, bytes: &[u8; 64], enabled: u64) -> Result<Self, GeneralProtection> {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |i: usize| u64::from_le_bytes(words[i]);
        let (present, layout) = (word(0), word(1));
        let compacted = (layout & COMPACTED != 0).then_some(layout & !COMPACTED);
        let reserved_clear = (2..8).all(|i| word(i) == 0);
        let good = match compacted {
            Some(components) => components & !enabled == 0 && present & !components == 0 && reserved_clear,
            None => restore == Restore::Xrstor && layout == 0 && word(2) == 0 && present & !enabled == 0,
        };
        if good { Ok(Self { present, compacted }) } else { Err(GeneralProtection) }
    }

    /// The byte ranges that restoring these components reads.
    pub fn ranges(self, requested: u64, count: usize) -> Vec<Range<usize>> {
        let loaded = requested & self.present;
        let mut ranges = Vec::with_capacity(8);
        if loaded & component::X87 != 0 {
            ranges.extend(X87_RANGES);
        }
        if self.loads_mxcsr(requested) {
            ranges.push(MXCSR_RANGE);
        }
        if loaded & component::SSE != 0 {
            ranges.push(xmm_range(count));
        }
        for (extended, at) in layout(self.compacted) {
            if loaded & extended.component != 0 {
                let size = if extended.component == component::AVX { 16 * count } else { extended.size };
                ranges.push(at..at + size);
            }
        }
        ranges
    }

    /// The standard format loads MXCSR with SSE or AVX, present or not; the compacted one with a present SSE.
    fn loads_mxcsr(self, requested: u64) -> bool {
        match self.compacted {
            None => requested & (component::SSE | component::AVX) != 0,
            Some(_) => requested & self.present & component::SSE != 0,
        }
    }

    /// Loads the requested components from the area, or initializes those not present. Returns the new PKRU.
    ///
    /// # Errors
    /// #GP(0) for a reserved bit in MXCSR; then nothing has changed.
    pub fn restore(
        self,
        width: PointerWidth,
        requested: u64,
        bytes: &[u8; AREA],
        vector: &mut VectorState,
        count: usize,
    ) -> Result<Option<u32>, GeneralProtection> {
        let legacy = bytes.first_chunk::<{ fxsave::LEN }>().ok_or(GeneralProtection)?;
        let loaded = requested & self.present;
        if self.loads_mxcsr(requested) {
            vector.mxcsr = checked_mxcsr(fxsave::mxcsr(legacy))?;
        } else if self.compacted.is_some() && requested & component::SSE != 0 {
            vector.mxcsr = INITIAL_MXCSR;
        }
        if requested & component::X87 != 0 {
            restore_x87(vector, width, loaded, legacy);
        }
        if loaded & component::SSE != 0 {
            fxsave::get_xmm(vector, count, legacy);
        } else if requested & component::SSE != 0 {
            fxsave::get_xmm(vector, count, &[0; fxsave::LEN]);
        }
        let mut pkru = None;
        for (extended, at) in layout(self.compacted).filter(|(at, _)| requested & at.component != 0) {
            let zeros = [0; EXTENDED[0].size];
            let present = loaded & extended.component != 0;
            let from = if present { &bytes[at..at + extended.size] } else { &zeros[..extended.size] };
            if extended.component == component::PKRU {
                pkru = from.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
            } else {
                restore_upper(vector, count, from);
            }
        }
        Ok(pkru)
    }
}

/// MXCSR, if no reserved bit is set.
///
/// # Errors
/// #GP(0), as LDMXCSR and FXRSTOR raise it, too.
pub fn checked_mxcsr(value: u32) -> Result<u32, GeneralProtection> {
    if value & !MXCSR_MASK == 0 { Ok(value) } else { Err(GeneralProtection) }
}

fn restore_x87(vector: &mut VectorState, width: PointerWidth, loaded: u64, legacy: &[u8; fxsave::LEN]) {
    if loaded & component::X87 != 0 {
        fxsave::get_x87(vector, width, legacy);
    } else {
        initialize_x87(vector);
    }
}

/// The initial configuration of x87 state: as after FNINIT, with zero in all registers.
fn initialize_x87(vector: &mut VectorState) {
    x87::initialize(vector);
    vector.st = [[0; 16]; 8];
}

fn restore_upper(vector: &mut VectorState, count: usize, from: &[u8]) {
    for (ymm, upper) in vector.ymm.iter_mut().zip(from.chunks_exact(16)).take(count) {
        ymm[16..].copy_from_slice(upper);
    }
}
