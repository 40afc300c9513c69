//! Segment descriptors and gates, as they stand in the descriptor tables.
//! SDM Vol. 3, "Segment Descriptors", "System Descriptor Types", "IDT Descriptors".

use crate::decode::{FS_BASE, GS_BASE};
use crate::mmu::Fault;
use crate::state::Cpu;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::bits;

bits! {
    /// A segment descriptor, or the low half of a 16-byte system descriptor.
    pub struct Descriptor: u64 {
        LIMIT_LOW   15:0  u32;
        BASE_LOW    39:16 u64;
        TYPE        43:40 u8;
        S           44    bool;
        DPL         46:45 u8;
        P           47    bool;
        LIMIT_HIGH  51:48 u32;
        AVL         52    bool;
        L           53    bool;
        DB          54    bool;
        G           55    bool;
        BASE_HIGH   63:56 u64;
    }
}

bits! {
    /// A gate, or the low half of a 16-byte gate.
    pub struct Gate: u64 {
        OFFSET_LOW   15:0  u64;
        SELECTOR     31:16 u16;
        /// Of a call gate: values to copy from stack to stack.
        PARAMETERS   36:32 u8;
        /// Of an IDT gate in IA-32e mode: the interrupt stack to switch to.
        IST          34:32 u8;
        TYPE         43:40 u8;
        S            44    bool;
        DPL          46:45 u8;
        P            47    bool;
        OFFSET_HIGH  63:48 u64;
    }
}

/// Types of system descriptors. SDM Vol. 3, "System Descriptor Types".
#[allow(missing_docs, reason = "the manual's own names")]
pub(crate) mod kind {
    pub const TSS_16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS_16_BUSY: u8 = 3;
    pub const CALL_GATE_16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE_16: u8 = 6;
    pub const TRAP_GATE_16: u8 = 7;
    pub const TSS: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL_GATE: u8 = 12;
    pub const INTERRUPT_GATE: u8 = 14;
    pub const TRAP_GATE: u8 = 15;
    /// Set in the type of a busy TSS.
    pub const BUSY: u8 = 2;
    /// Set in the type of a segment that has been loaded.
    pub const ACCESSED: u8 = 1;
}

/// Byte of a descriptor that holds its type.
const TYPE_BYTE: u64 = 5;
/// Limits of the smallest TSSs. SDM Vol. 3, "Task-State Segment (TSS)".
const TSS_MIN_LIMIT: u32 = 0x67;
const TSS_16_MIN_LIMIT: u32 = 0x2b;
/// Limit of a segment in real-address and virtual-8086 mode.
const REAL_LIMIT: u32 = 0xffff;

/// The requested privilege level of a selector.
pub(crate) const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// Is it a null selector?
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Does it name an entry of the LDT?
pub(crate) const fn in_ldt(selector: u16) -> bool {
    selector & 4 != 0
}

/// A selector as an error code. SDM Vol. 3, "Error Code".
pub(crate) const fn selector_code(selector: u16) -> u32 {
    (selector & !3) as u32
}

impl Descriptor {
    /// The segment's base; of a 16-byte descriptor the low 32 bits.
    pub fn base(self) -> u64 {
        self.get(Self::BASE_LOW) | self.get(Self::BASE_HIGH) << 24
    }

    /// The segment's limit in bytes.
    pub fn limit(self) -> u32 {
        let limit = self.get(Self::LIMIT_LOW) | self.get(Self::LIMIT_HIGH) << 16;
        if self.get(Self::G) { limit << 12 | 0xfff } else { limit }
    }

    /// Its attributes as access rights.
    pub fn rights(self) -> AccessRights {
        AccessRights(
            (self.0 >> 40) as u32 & !AccessRights::RESERVED & !(AccessRights::UNUSABLE.mask() as u32),
        )
    }

    /// The segment register that a selector of this descriptor loads.
    pub fn segment(self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), rights: self.rights(), selector }
    }

    /// Is it a code segment?
    pub fn is_code(self) -> bool {
        self.get(Self::S) && self.get(Self::TYPE) & 8 != 0
    }

    /// Is it a conforming code segment?
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.get(Self::TYPE) & 4 != 0
    }

    /// Is it a data segment that can be written?
    pub fn is_writable(self) -> bool {
        self.get(Self::S) && self.get(Self::TYPE) & 0b1010 == 0b0010
    }

    /// Is it a data segment or a code segment that can be read?
    pub fn is_readable(self) -> bool {
        self.get(Self::S) && (self.get(Self::TYPE) & 8 == 0 || self.get(Self::TYPE) & 2 != 0)
    }

    /// The type of a system descriptor.
    pub fn system_kind(self) -> Option<u8> {
        (!self.get(Self::S)).then(|| self.get(Self::TYPE))
    }
}

impl Gate {
    /// Type of the gate, if it is a system descriptor at all.
    pub fn kind(self) -> Option<u8> {
        (!self.get(Self::S)).then(|| self.get(Self::TYPE))
    }

    /// Is it one of the 32-bit (in IA-32e mode 64-bit) gates, not of the 16-bit ones?
    pub fn is_wide(self) -> bool {
        self.get(Self::TYPE) & 8 != 0
    }

    /// The offset that it leads to; of a 16-byte gate the low 32 bits.
    pub fn offset(self) -> u64 {
        if self.is_wide() {
            self.get(Self::OFFSET_LOW) | self.get(Self::OFFSET_HIGH) << 16
        } else {
            self.get(Self::OFFSET_LOW)
        }
    }
}

/// A segment register that holds a null selector.
pub(crate) fn unusable(selector: u16) -> Segment {
    Segment {
        selector,
        rights: AccessRights::default().with(AccessRights::UNUSABLE, true),
        ..Segment::default()
    }
}

/// SS as IA-32e mode loads it on a change of privilege: null, at the new CPL.
pub(crate) fn null_stack(cpl: u8) -> Segment {
    let segment = unusable(u16::from(cpl));
    Segment { rights: segment.rights.with(AccessRights::DPL, cpl), ..segment }
}

/// A segment in virtual-8086 mode. SDM Vol. 3, "8086 Emulation".
pub(crate) fn virtual_8086(selector: u16) -> Segment {
    let rights = AccessRights::default()
        .with(AccessRights::TYPE, 3)
        .with(AccessRights::S, true)
        .with(AccessRights::DPL, 3)
        .with(AccessRights::P, true);
    Segment { base: u64::from(selector) << 4, limit: REAL_LIMIT, rights, selector }
}

/// Bits of offsets in a stack segment.
pub(crate) fn stack_mask(segment: &Segment) -> u64 {
    if segment.rights.get(AccessRights::DB) { 0xffff_ffff } else { 0xffff }
}

/// Do `size` bytes at `offset` lie in the segment? SDM Vol. 3, "Limit Checking".
pub(crate) fn contains(segment: &Segment, offset: u64, size: u64, real: bool) -> bool {
    let (limit, last) = (u64::from(segment.limit), offset + size - 1);
    let kind = segment.rights.get(AccessRights::TYPE);
    if kind & 0b1100 == 0b0100 && !real {
        return offset > limit && last <= stack_mask(segment);
    }
    last <= limit
}

/// An entry of the GDT or LDT, and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub descriptor: Descriptor,
    pub linear: u64,
    pub selector: u16,
}

impl Entry {
    /// The segment register that it loads.
    pub fn segment(&self) -> Segment {
        let segment = self.descriptor.segment(self.selector);
        let kind = segment.rights.get(AccessRights::TYPE) | kind::ACCESSED;
        Segment { rights: segment.rights.with(AccessRights::TYPE, kind), ..segment }
    }
}

/// Makes an exception from an error code.
pub(crate) type Raise = fn(u32) -> Exception;

impl Cpu {
    /// Sets a segment register. After CS or SS, [`Cpu::refresh_mode`] must follow.
    pub(crate) fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = segment;
        match register {
            SegmentRegister::Fs => self.gpr[FS_BASE] = segment.base,
            SegmentRegister::Gs => self.gpr[GS_BASE] = segment.base,
            _ => {}
        }
    }

    /// Copies FS.base and GS.base to where addressing in 64-bit mode reads them.
    pub(crate) fn refresh_bases(&mut self) {
        self.gpr[FS_BASE] = self.segment(SegmentRegister::Fs).base;
        self.gpr[GS_BASE] = self.segment(SegmentRegister::Gs).base;
    }

    /// Reads the descriptor of a selector; `raise` makes the exception of a selector beyond its table.
    pub(crate) fn descriptor(&mut self, selector: u16, raise: Raise, ext: u32) -> Result<Entry, Fault> {
        let beyond = Fault::from(raise(selector_code(selector) | ext));
        let (base, limit) = if in_ldt(selector) {
            let ldtr = self.segment(SegmentRegister::Ldtr);
            if !ldtr.rights.is_usable() {
                return Err(beyond);
            }
            (ldtr.base, ldtr.limit)
        } else {
            self.gdtr
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Err(beyond);
        }
        let linear = base.wrapping_add(u64::from(offset));
        let descriptor = Descriptor(u64::from_le_bytes(self.read_system::<8>(linear)?));
        Ok(Entry { descriptor, linear, selector })
    }

    /// Reads the high half of a 16-byte system descriptor: in IA-32e mode, LDT, TSS and gates.
    pub(crate) fn descriptor_high(&mut self, entry: &Entry, raise: Raise, ext: u32) -> Result<u64, Fault> {
        let beyond = Fault::from(raise(selector_code(entry.selector) | ext));
        let limit =
            if in_ldt(entry.selector) { self.segment(SegmentRegister::Ldtr).limit } else { self.gdtr.1 };
        if u32::from(entry.selector & !7) + 15 > limit {
            return Err(beyond);
        }
        let high = u64::from_le_bytes(self.read_system::<8>(entry.linear.wrapping_add(8))?);
        // The type field of the high half must be that of a null descriptor.
        if high >> 40 & 0x1f != 0 { Err(beyond) } else { Ok(high) }
    }

    /// Sets type bits of a descriptor in its table, if they are not set.
    pub(crate) fn mark(&mut self, entry: &Entry, bits: u8) -> Result<(), Fault> {
        if entry.descriptor.get(Descriptor::TYPE) & bits == bits {
            return Ok(());
        }
        let byte = (entry.descriptor.0 >> (8 * TYPE_BYTE)) as u8 | bits;
        self.write_system(entry.linear.wrapping_add(TYPE_BYTE), &[byte])
    }

    /// What a load of ES, DS, FS or GS gives. SDM Vol. 2, "MOV—Move".
    pub(crate) fn data_segment(
        &mut self,
        register: SegmentRegister,
        selector: u16,
    ) -> Result<Segment, Fault> {
        if !self.protected() {
            return Ok(self.real_segment(register, selector));
        }
        if self.virtual_8086() {
            return Ok(virtual_8086(selector));
        }
        if is_null(selector) {
            return Ok(unusable(selector));
        }
        let code = selector_code(selector);
        let entry = self.descriptor(selector, Exception::gp, 0)?;
        let descriptor = entry.descriptor;
        let dpl = descriptor.get(Descriptor::DPL);
        let too_privileged = rpl(selector) > dpl || self.cpl > dpl;
        if !descriptor.is_readable() || (!descriptor.is_conforming() && too_privileged) {
            return Err(Exception::gp(code).into());
        }
        if !descriptor.get(Descriptor::P) {
            return Err(Exception::np(code).into());
        }
        self.mark(&entry, kind::ACCESSED)?;
        Ok(entry.segment())
    }

    /// What a load of SS gives. SDM Vol. 2, "MOV—Move".
    pub(crate) fn stack_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        if !self.protected() {
            return Ok(self.real_segment(SegmentRegister::Ss, selector));
        }
        if self.virtual_8086() {
            return Ok(virtual_8086(selector));
        }
        if is_null(selector) {
            let allowed = self.is_64() && self.cpl < 3 && rpl(selector) == self.cpl;
            return if allowed { Ok(null_stack(self.cpl)) } else { Err(Exception::gp(0).into()) };
        }
        self.stack_of(selector, self.cpl, Exception::gp, 0)
    }

    /// The stack segment of a selector, for use at `cpl`; `raise` makes the exception of an unfit one.
    pub(crate) fn stack_of(
        &mut self,
        selector: u16,
        cpl: u8,
        raise: Raise,
        ext: u32,
    ) -> Result<Segment, Fault> {
        let code = selector_code(selector) | ext;
        let entry = self.descriptor(selector, raise, ext)?;
        let descriptor = entry.descriptor;
        if rpl(selector) != cpl || descriptor.get(Descriptor::DPL) != cpl || !descriptor.is_writable() {
            return Err(raise(code).into());
        }
        if !descriptor.get(Descriptor::P) {
            return Err(Exception::ss(code).into());
        }
        self.mark(&entry, kind::ACCESSED)?;
        Ok(entry.segment())
    }

    /// A segment register loaded in real-address mode: limit and attributes stay as protected mode left them.
    pub(crate) fn real_segment(&self, register: SegmentRegister, selector: u16) -> Segment {
        let before = *self.segment(register);
        let base = u64::from(selector) << 4;
        if before.rights.is_usable() {
            return Segment { base, selector, ..before };
        }
        let fresh = virtual_8086(selector);
        Segment { rights: fresh.rights.with(AccessRights::DPL, 0), ..fresh }
    }

    /// The checks of a new TSS before a task switch; `available` says which types it may have.
    /// SDM Vol. 3, "Task Switching"; "Treatment of Task Switches".
    pub(crate) fn check_task(
        &mut self,
        selector: u16,
        raise: Raise,
        busy: bool,
        ext: u32,
    ) -> Result<(), Fault> {
        let code = selector_code(selector) | ext;
        if is_null(selector) || in_ldt(selector) {
            return Err(raise(code).into());
        }
        let descriptor = self.descriptor(selector, raise, ext)?.descriptor;
        let least = match (descriptor.system_kind(), busy) {
            (Some(kind::TSS), false) | (Some(kind::TSS_BUSY), true) => TSS_MIN_LIMIT,
            (Some(kind::TSS_16), false) | (Some(kind::TSS_16_BUSY), true) => TSS_16_MIN_LIMIT,
            _ => return Err(raise(code).into()),
        };
        if !descriptor.get(Descriptor::P) {
            return Err(Exception::np(code).into());
        }
        if descriptor.limit() < least {
            return Err(Exception::ts(code).into());
        }
        Ok(())
    }

    /// Stack pointer and stack segment of a more privileged level, from the TSS. SDM Vol. 3, "Stack Switching".
    pub(crate) fn inner_stack(&mut self, cpl: u8, ext: u32) -> Result<(u64, u16), Fault> {
        let tr = *self.segment(SegmentRegister::Tr);
        let beyond = Fault::from(Exception::ts(selector_code(tr.selector) | ext));
        let level = u64::from(cpl);
        if tr.rights.get(AccessRights::TYPE) & 8 == 0 {
            let offset = 2 + 4 * level;
            if offset + 3 > u64::from(tr.limit) {
                return Err(beyond);
            }
            let bytes = u32::from_le_bytes(self.read_system::<4>(tr.base.wrapping_add(offset))?);
            return Ok((u64::from(bytes & 0xffff), (bytes >> 16) as u16));
        }
        let offset = 4 + 8 * level;
        if offset + 5 > u64::from(tr.limit) {
            return Err(beyond);
        }
        let pointer = u32::from_le_bytes(self.read_system::<4>(tr.base.wrapping_add(offset))?);
        let selector = u16::from_le_bytes(self.read_system::<2>(tr.base.wrapping_add(offset + 4))?);
        Ok((u64::from(pointer), selector))
    }

    /// A stack pointer of the 64-bit TSS: RSP0–2 are numbers 0–2, IST1–7 numbers 4–10.
    /// SDM Vol. 3, "64-Bit Task State Segment".
    pub(crate) fn tss_stack_64(&mut self, number: u64, ext: u32) -> Result<u64, Fault> {
        let tr = *self.segment(SegmentRegister::Tr);
        let offset = 4 + 8 * number;
        if offset + 7 > u64::from(tr.limit) {
            return Err(Exception::ts(selector_code(tr.selector) | ext).into());
        }
        Ok(u64::from_le_bytes(self.read_system::<8>(tr.base.wrapping_add(offset))?))
    }
}
