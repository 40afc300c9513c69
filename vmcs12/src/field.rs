//! VMCS fields and the VMCS as a value. SDM Vol. 3, "Field Encoding in VMCS".

pub mod table;

use crate::control::{Control, Word};
use std::marker::PhantomData;

/// What a VMCS field can hold: kept as 64 bits whatever its width.
pub trait Value: Copy {
    /// The value of the field's raw bits.
    fn from_raw(raw: u64) -> Self;
    /// The field's raw bits.
    fn raw(self) -> u64;
}

macro_rules! int_value {
    ($($t:ty)*) => { $(impl Value for $t {
        #[inline(always)]
        fn from_raw(raw: u64) -> Self { raw as $t }
        #[inline(always)]
        fn raw(self) -> u64 { u64::from(self) }
    })* };
}
int_value!(u16 u32 u64);

/// A VMCS field whose value is a `T`; its type rides on the constant.
pub struct Field<T> {
    slot: u16,
    encoding: u16,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Field<T> {}

impl<T> Field<T> {
    pub(crate) const fn at(slot: usize, encoding: u16) -> Self {
        Self { slot: slot as u16, encoding, value: PhantomData }
    }
    /// The field's place in the table and in a [`Vmcs`].
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
    /// The field's row.
    pub const fn row(self) -> &'static Row {
        &table::FIELDS[self.slot as usize]
    }
    /// The field without its type.
    pub const fn any(self) -> AnyField {
        AnyField(self.slot)
    }
}

/// A VMCS field whose type is not known while compiling: reports, VMREAD, VMWRITE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AnyField(u16);

impl AnyField {
    /// The field in this slot of the table.
    pub const fn at(slot: usize) -> Self {
        assert!(slot < table::FIELDS.len());
        Self(slot as u16)
    }
    /// The field's place in the table and in a [`Vmcs`].
    pub const fn slot(self) -> usize {
        self.0 as usize
    }
    /// The field's row.
    pub fn row(self) -> &'static Row {
        &table::FIELDS[self.slot()]
    }
    /// The field of a full (even) encoding, if there is one. SDM Vol. 3, "Field Encoding in VMCS".
    pub fn from_encoding(encoding: u32) -> Option<Self> {
        let slot = *table::SLOTS.get(slot_key(encoding)?)?;
        (slot != table::NO_SLOT).then_some(Self(slot))
    }
}

/// A dense index of the even encodings whose reserved bits are 0: type, width, index below 64.
pub(crate) const fn slot_key(encoding: u32) -> Option<usize> {
    if encoding & !0x6c7e != 0 {
        return None;
    }
    let (index, kind, width) = ((encoding >> 1) & 0x3f, (encoding >> 10) & 3, (encoding >> 13) & 3);
    Some((width << 8 | kind << 6 | index) as usize)
}

/// Field width. SDM Vol. 3, "Field Encoding in VMCS", bits 14:13.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 16 bits.
    W16,
    /// 64 bits, with a high half of its own encoding.
    W64,
    /// 32 bits.
    W32,
    /// 64 bits on processors with Intel 64.
    Natural,
}

impl Width {
    /// The bits that a field of this width holds.
    pub const fn mask(self) -> u64 {
        match self {
            Self::W16 => 0xffff,
            Self::W32 => 0xffff_ffff,
            Self::W64 | Self::Natural => u64::MAX,
        }
    }
}

/// What a field belongs to. SDM Vol. 3, "Field Encoding in VMCS", bits 11:10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    /// VM-execution, VM-exit and VM-entry control fields.
    Control,
    /// VM-exit information: read-only unless bit 29 of IA32_VMX_MISC is 1.
    ExitInformation,
    /// Guest-state area.
    Guest,
    /// Host-state area.
    Host,
}

/// The width in an encoding.
const fn width_of(encoding: u32) -> Width {
    match (encoding >> 13) & 3 {
        0 => Width::W16,
        1 => Width::W64,
        2 => Width::W32,
        _ => Width::Natural,
    }
}

/// One row of the field table.
#[derive(Debug)]
pub struct Row {
    /// Encoding of the full field (bit 0 clear).
    pub encoding: u32,
    /// The manual's name, as the constant is called.
    pub name: &'static str,
    /// The field exists if one of these controls can be 1; always, if empty.
    pub exists_with: &'static [Control],
}

impl Row {
    /// Width, from the encoding.
    pub const fn width(&self) -> Width {
        width_of(self.encoding)
    }
    /// Area, from the encoding.
    pub const fn area(&self) -> Area {
        match (self.encoding >> 10) & 3 {
            0 => Area::Control,
            1 => Area::ExitInformation,
            2 => Area::Guest,
            _ => Area::Host,
        }
    }
    /// Index, from the encoding.
    pub const fn index(&self) -> u32 {
        (self.encoding >> 1) & 0x1ff
    }
}

/// Groups of fields that are written together; a reader who has seen a group's generation need not look again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Group {
    /// Control fields, but for event injection.
    Control,
    /// Exit information and event injection: written around every entry.
    Event,
    /// Guest-state area.
    Guest,
    /// Host-state area.
    Host,
}

impl Group {
    /// The group of the field with this encoding.
    pub const fn of(encoding: u32) -> Self {
        match (encoding >> 10) & 3 {
            0 => match encoding {
                0x4016 | 0x4018 | 0x401a => Self::Event,
                _ => Self::Control,
            },
            1 => Self::Event,
            2 => Self::Guest,
            _ => Self::Host,
        }
    }
}

/// A VMCS as a plain value: one 64-bit word per field, and the groups written since a reader last asked.
#[derive(Clone, PartialEq, Eq)]
pub struct Vmcs {
    values: [u64; table::FIELDS.len()],
    dirty: u8,
}

impl Default for Vmcs {
    fn default() -> Self {
        Self { values: [0; table::FIELDS.len()], dirty: u8::MAX }
    }
}

impl Vmcs {
    /// A field's value.
    #[inline(always)]
    pub fn get<T: Value>(&self, field: Field<T>) -> T {
        T::from_raw(self.values[field.slot()])
    }

    /// Writes a field; bits beyond its width are dropped.
    #[inline(always)]
    pub fn set<T: Value>(&mut self, field: Field<T>, value: T) {
        let encoding = u32::from(field.encoding);
        self.values[field.slot()] = value.raw() & width_of(encoding).mask();
        self.dirty |= 1 << Group::of(encoding) as u8;
    }

    /// A field's raw value.
    #[inline(always)]
    pub fn raw(&self, field: AnyField) -> u64 {
        self.values[field.slot()]
    }

    /// Writes a field's raw value; bits beyond its width are dropped.
    #[inline(always)]
    pub fn set_raw(&mut self, field: AnyField, value: u64) {
        let row = field.row();
        self.values[field.slot()] = value & row.width().mask();
        self.dirty |= 1 << Group::of(row.encoding) as u8;
    }

    /// Copies the fields in a range of slots, all of one area other than the control fields.
    #[inline]
    pub fn copy_slots(&mut self, from: &Self, slots: std::ops::Range<usize>) {
        self.dirty |= 1 << Group::of(table::FIELDS[slots.start].encoding) as u8;
        self.values[slots.clone()].copy_from_slice(&from.values[slots]);
    }

    /// Has a group been written since [`Vmcs::clean`]?
    #[inline(always)]
    pub fn is_dirty(&self, group: Group) -> bool {
        self.dirty & (1 << group as u8) != 0
    }

    /// Marks a group as seen.
    #[inline(always)]
    pub fn clean(&mut self, group: Group) {
        self.dirty &= !(1 << group as u8);
    }

    /// Marks every group as written.
    pub fn touch(&mut self) {
        self.dirty = u8::MAX;
    }

    /// The control word. Secondary, tertiary and secondary exit controls are 0 while they are not activated.
    #[inline(always)]
    pub fn controls(&self, word: Word) -> u64 {
        match word.activated_by() {
            Some(control) if !self.has(control) => 0,
            _ => self.values[word.field().slot()],
        }
    }

    /// Is a control 1 and in force?
    #[inline(always)]
    pub fn has(&self, control: Control) -> bool {
        self.controls(control.word) & control.mask() != 0
    }

    /// Sets or clears a control's bit.
    #[inline(always)]
    pub fn set_control(&mut self, control: Control, on: bool) {
        let field = control.word.field();
        let rest = self.raw(field) & !control.mask();
        let value = if on { rest | control.mask() } else { rest };
        if value != self.raw(field) {
            self.set_raw(field, value);
        }
    }
}

impl std::fmt::Debug for Vmcs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        for (slot, row) in table::FIELDS.iter().enumerate() {
            if self.values[slot] != 0 {
                map.entry(&row.name, &format_args!("{:#x}", self.values[slot]));
            }
        }
        map.finish()
    }
}

/// The VMCS entered, and the one that its link pointer names (VMCS shadowing).
pub struct VmcsSet {
    /// The current VMCS.
    pub current: Box<Vmcs>,
    /// The VMCS referenced by the link pointer: VMREAD and VMWRITE without an exit go to it.
    pub linked: Option<Box<Vmcs>>,
    /// With a linked VMCS: RIP of the last VMWRITE to each of its fields, for reports.
    pub writers: Option<Box<[u64; table::FIELDS.len()]>>,
    /// VMREADs and VMWRITEs that the processor completed on the linked VMCS.
    pub shadow_accesses: (u64, u64),
}
