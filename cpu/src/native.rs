//! Vector and floating-point instructions, executed by the host's own.
//!
//! [`Thunks::prepare`] turns a decoded instruction into one of three kinds of work: a plain move, a thunk
//! (one for each form, generated once), or software (what moves state between registers and images). The core
//! does the rest in this order: [`gate`], the pending x87 exception, the operand's address and alignment, its
//! bytes through the MMU into an [`Operand`], the work, and the write-back.
//!
//! **Depends on the host's processor**, because two vendors' silicon differs and no manual decides:
//! - RCPPS, RCPSS, RSQRTPS, RSQRTSS: the low bits of the approximations;
//! - x87 transcendental functions (FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1): the last bits;
//! - C0 to C3 where undefined; OF, SF and AF after FCOMI and its relatives.
//!
//! `Deviation:` with an unmasked overflow or underflow, MXCSR.PE is set as if it were masked; with any exception
//! unmasked, DPPS and DPPD report the exceptions of all their steps together, and none of an exact tiny product.
//!
//! Everything else follows the manual whatever the host: pointers in FXSAVE images, XINUSE, tags, MXCSR_MASK.

mod arena;
pub mod features;
pub mod form;
pub mod fxsave;
pub mod gate;
pub mod moves;
mod simd;
pub mod software;
mod thunk;
pub mod x87;
pub mod xsave;

use arena::Arena;
pub use features::{Feature, Features};
use form::{HIGH_BYTE, Key};
pub use form::{MemoryUse, Registers, Terms};
pub use gate::{Class, gate};
use iced_x86::Instruction;
pub use moves::Move;
pub use software::Software;
use std::collections::HashMap;
use std::io;
use std::mem::{offset_of, transmute};
use std::ptr::{self, NonNull};
use thunk::{Context, Plan, SLOTS, Slot, Thunk, Use};
use vmcs12::arch::rflags;
use vmcs12::cpu_state::{VectorState, gpr};

/// The bounce buffer of a memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Operand(pub [u8; 64]);

impl Default for Operand {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// Which thunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormId(u32);

/// A form and its registers in 64 bits, for the core's operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packed(pub u64);

impl Packed {
    /// Packs: the form in bits 31:0, four vector registers of 4 bits, two general ones of 5.
    pub fn new(id: FormId, registers: Registers) -> Self {
        let vector =
            registers.vector.iter().rev().fold(0, |bits, &number| bits << 4 | u64::from(number & 15));
        let general = registers.general.map(|number| u64::from(number & 15 | (number & HIGH_BYTE) >> 3));
        Self(u64::from(id.0) | vector << 32 | general[0] << 48 | general[1] << 53)
    }

    /// The form.
    #[inline(always)]
    pub fn form(self) -> FormId {
        FormId(self.0 as u32)
    }

    /// The registers.
    #[inline(always)]
    pub fn registers(self) -> Registers {
        let vector = std::array::from_fn(|slot| (self.0 >> (32 + 4 * slot)) as u8 & 15);
        let general = [48, 53].map(|at| {
            let number = (self.0 >> at) as u8;
            number & 15 | (number & 16) << 3
        });
        Registers { vector, general }
    }
}

/// How an instruction is executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// A plain copy.
    Move(Move),
    /// The host's instruction, through [`Thunks::form`].
    Host(FormId, Registers),
    /// The core, with the functions of [`software`], [`x87`], [`fxsave`] and [`xsave`].
    Software(Software),
}

/// An instruction, ready to be executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// What is checked first.
    pub terms: Terms,
    /// What is done then.
    pub work: Work,
}

/// The forms met so far and their thunks.
pub struct Thunks {
    arena: Arena,
    host: Features,
    /// Boxed, so that the core can keep pointers to them.
    #[allow(clippy::vec_box, reason = "a form never moves")]
    forms: Vec<Box<Form>>,
    known: HashMap<Key, Option<FormId>>,
}

/// Does this host give executable memory?
///
/// # Errors
/// Why it does not. Then no processor can be made.
pub fn probe() -> io::Result<()> {
    Arena::new().map(|_| ())
}

impl Default for Thunks {
    fn default() -> Self {
        Self::new()
    }
}

impl Thunks {
    /// Nothing prepared yet.
    ///
    /// # Panics
    /// If the host gives no executable memory, which [`probe`] finds out.
    pub fn new() -> Self {
        let arena = Arena::new().expect("the host gives executable memory, as `probe` has found");
        Self { arena, host: Features::host(), forms: Vec::new(), known: HashMap::new() }
    }

    /// What the host executes.
    pub fn host(&self) -> Features {
        self.host
    }

    /// Prepares an instruction; `None` if it is not one of these, or its feature is not among those offered,
    /// which must be the host's, too.
    pub fn prepare(&mut self, inst: &Instruction, offered: Features) -> Option<Prepared> {
        if !form::is_offered(inst.code(), offered) {
            return None;
        }
        if let Some(software) = Software::of(inst) {
            return Some(Prepared { terms: software.terms(inst), work: Work::Software(software) });
        }
        if let Some(copy) = Move::of(inst) {
            return Some(Prepared { terms: form::terms(inst), work: Work::Move(copy) });
        }
        let key = Key::of(inst);
        let known = match self.known.get(&key) {
            Some(&known) => known,
            None => {
                let made = self.make(inst);
                self.known.insert(key, made);
                made
            }
        };
        known.map(|id| Prepared { terms: self.form(id).terms, work: Work::Host(id, form::registers(inst)) })
    }

    /// The form of a prepared instruction; it stays where it is as long as this value lives.
    #[inline(always)]
    pub fn form(&self, id: FormId) -> &Form {
        &self.forms[id.0 as usize]
    }

    fn make(&mut self, inst: &Instruction) -> Option<FormId> {
        let plan = form::plan(inst);
        let code = thunk::assemble(&plan).ok()?;
        let start = self.arena.add(&code)?;
        let id = FormId(u32::try_from(self.forms.len()).ok()?);
        self.forms.push(Box::new(Form::new(start, &plan, inst, form::terms(inst))));
        Some(id)
    }
}

/// Why an instruction did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Raised {
    /// An unmasked SIMD floating-point exception: #XM, or #UD while CR4.OSXMMEXCPT is 0. MXCSR has its flags.
    SimdException,
}

/// What to do with the memory operand of an instruction that writes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// Write it back.
    Done,
    /// An unmasked x87 exception is now pending, and memory stays as it was.
    Withheld,
}

/// What a form works on besides vector registers.
pub struct Machine<'a> {
    /// The general registers.
    pub general: &'a mut [u64; 16],
    /// RFLAGS.
    pub rflags: &'a mut u64,
    /// The memory operand.
    pub operand: &'a mut Operand,
}

/// An instruction form and its thunk, which lives as long as the [`Thunks`] that owns both.
pub struct Form {
    /// What the core checks first.
    pub terms: Terms,
    thunk: Thunk,
    kind: Kind,
    slots: [Option<(Slot, Use)>; SLOTS],
    general: [Option<Use>; 2],
    reads_rdx: bool,
    writes_rcx: bool,
    writes_flags: bool,
    uses_flags: bool,
    enters_mmx: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Vector registers and memory only.
    Plain,
    /// General registers or flags, too.
    Integer,
    Simd(simd::Arithmetic, MemoryUse),
    X87(MemoryUse),
}

impl Form {
    fn new(start: NonNull<u8>, plan: &Plan, inst: &Instruction, terms: Terms) -> Self {
        let kind = match simd::arithmetic(inst.mnemonic()) {
            _ if plan.is_x87 => Kind::X87(terms.memory),
            Some(arithmetic) => Kind::Simd(arithmetic, terms.memory),
            None if plan.is_plain() => Kind::Plain,
            None => Kind::Integer,
        };
        let touches_mm = plan.slots.iter().flatten().any(|(slot, _)| *slot == Slot::Mm);
        Self {
            terms,
            // SAFETY: `start` is the beginning of a complete thunk, which has this type by construction.
            thunk: unsafe { transmute::<*mut u8, Thunk>(start.as_ptr()) },
            kind,
            slots: plan.slots,
            general: plan.general,
            reads_rdx: plan.reads_rdx,
            writes_rcx: plan.writes_rcx,
            writes_flags: plan.writes_flags,
            uses_flags: plan.writes_flags || plan.reads_flags,
            enters_mmx: touches_mm || form::enters_mmx_from_memory(inst.code()),
        }
    }

    /// Does it read or write RFLAGS? If not, [`Machine::rflags`] can be anything.
    #[inline(always)]
    pub fn uses_flags(&self) -> bool {
        self.uses_flags
    }

    /// Does it use XMM or YMM registers and perhaps memory, and nothing else?
    pub fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain) && !self.enters_mmx
    }

    /// Executes a plain form that does not write memory.
    ///
    /// # Safety
    /// The form is plain, `state` is valid for reading and writing, and if the form reads memory, `operand` is
    /// valid for reading as many bytes, and as aligned as its terms demand.
    #[inline(always)]
    pub unsafe fn run_plain(&self, vector: [u8; SLOTS], state: *mut VectorState, operand: *const u8) {
        let base = state.cast::<u8>().wrapping_add(offset_of!(VectorState, ymm));
        let [a, b, c, d] = vector.map(|number| base.wrapping_add(32 * index(number)));
        // SAFETY: the thunk of a plain form uses no context, reads at most the operand's bytes, and reads and writes
        // the registers that its slots point to, which are all in the state.
        unsafe { (self.thunk)(ptr::null_mut(), operand.cast_mut(), a, b, c, d) };
    }

    /// Is it an x87 instruction, which leaves its addresses in the pointers?
    #[inline(always)]
    pub fn is_x87(&self) -> bool {
        matches!(self.kind, Kind::X87(_))
    }

    /// Executes the instruction. The memory operand has been read into the operand, or will be written from it.
    ///
    /// # Errors
    /// An unmasked SIMD exception; then nothing but MXCSR's flags has changed, and the x87 stack if the
    /// instruction names MMX registers.
    #[inline]
    pub fn run(
        &self,
        registers: Registers,
        state: &mut VectorState,
        machine: &mut Machine<'_>,
    ) -> Result<Store, Raised> {
        match self.kind {
            Kind::Plain => {
                self.call_vector(registers, state, machine.operand, ptr::null_mut());
                Ok(Store::Done)
            }
            Kind::Integer => {
                self.run_integer(registers, state, machine);
                Ok(Store::Done)
            }
            Kind::Simd(arithmetic, memory) => {
                self.run_simd(registers, state, machine, (arithmetic, memory)).map(|()| Store::Done)
            }
            Kind::X87(memory) => Ok(self.run_x87(state, machine, memory)),
        }
    }

    fn run_integer(&self, registers: Registers, state: &mut VectorState, machine: &mut Machine<'_>) {
        let mut context = self.context(registers, machine);
        self.call_vector(registers, state, machine.operand, ptr::from_mut(&mut context));
        self.commit(registers, machine, &context);
    }

    fn run_simd(
        &self,
        registers: Registers,
        state: &mut VectorState,
        machine: &mut Machine<'_>,
        (arithmetic, memory): (simd::Arithmetic, MemoryUse),
    ) -> Result<(), Raised> {
        let guest = state.mxcsr;
        let before = (guest & simd::MASKS != simd::MASKS).then_some(*state);
        let mut context = self.context(registers, machine);
        context.mxcsr = simd::masked(guest);
        self.call_vector(registers, state, machine.operand, ptr::from_mut(&mut context));
        let result = self.result(registers, state, machine.operand, memory);
        let (flags, unmasked) = simd::raised(guest, arithmetic, context.mxcsr_after, result);
        if let Some(before) = before.filter(|_| unmasked) {
            *state = before;
            state.mxcsr |= flags;
            if self.enters_mmx {
                x87::enter_mmx(state);
            }
            return Err(Raised::SimdException);
        }
        state.mxcsr |= flags;
        self.commit(registers, machine, &context);
        Ok(())
    }

    /// The bytes that the instruction computed.
    fn result<'a>(
        &self,
        registers: Registers,
        state: &'a VectorState,
        operand: &'a Operand,
        memory: MemoryUse,
    ) -> &'a [u8] {
        if let Some(bytes) = memory.writes() {
            return &operand.0[..usize::from(bytes)];
        }
        match self.slots[0] {
            Some((Slot::Xmm, Use::Destination)) => &state.ymm[index(registers.vector[0])][..16],
            Some((Slot::Ymm, Use::Destination)) => &state.ymm[index(registers.vector[0])],
            _ => &[],
        }
    }

    fn run_x87(&self, state: &mut VectorState, machine: &mut Machine<'_>, memory: MemoryUse) -> Store {
        let mut image = fxsave::Image([0; fxsave::LEN]);
        // An exception that is pending here was ignored by the core (CR0.NE=0): the host must not take it.
        let ignored = if x87::pending(state) { state.fsw & x87::EXCEPTIONS } else { 0 };
        state.fsw &= !ignored;
        x87::settle(state);
        fxsave::put_x87(state, fxsave::PointerWidth::Flat, &mut image.0);
        let mut context = Context { rflags: thunk_flags(*machine.rflags), ..Context::default() };
        let none = ptr::null_mut();
        let (context_at, operand) = (ptr::from_mut(&mut context), machine.operand.0.as_mut_ptr());
        // SAFETY: the thunk of an x87 form uses the context, 64 bytes of operand and the 512-byte aligned image.
        unsafe { (self.thunk)(context_at, operand, image.0.as_mut_ptr(), none, none, none) };
        let new = take_x87(state, &image.0) & !state.fcw & x87::EXCEPTIONS;
        state.fsw |= ignored;
        x87::settle(state);
        if self.writes_flags {
            merge_flags(machine.rflags, context.rflags);
        }
        let withheld = memory.writes().is_some() && new & !x87::PRECISION != 0;
        if withheld { Store::Withheld } else { Store::Done }
    }

    /// The general operands, as the thunk expects them.
    fn context(&self, registers: Registers, machine: &Machine<'_>) -> Context {
        let mut context = Context::default();
        for (at, number) in
            registers.general.into_iter().enumerate().filter(|&(at, _)| self.general[at].is_some())
        {
            let value = machine.general[index(number)];
            context.general[at] = if number & HIGH_BYTE != 0 { value >> 8 } else { value };
        }
        if self.reads_rdx {
            context.rdx = machine.general[gpr::RDX];
        }
        context
    }

    /// What the thunk left for the general registers and RFLAGS.
    fn commit(&self, registers: Registers, machine: &mut Machine<'_>, context: &Context) {
        for (at, number) in registers.general.into_iter().enumerate() {
            if self.general[at] == Some(Use::Destination) {
                machine.general[index(number)] = context.general[at];
            }
        }
        if self.writes_rcx {
            machine.general[gpr::RCX] = context.rcx;
        }
        if self.writes_flags {
            merge_flags(machine.rflags, context.rflags);
        }
    }

    fn call_vector(
        &self,
        registers: Registers,
        state: &mut VectorState,
        operand: &mut Operand,
        context: *mut Context,
    ) {
        if self.enters_mmx {
            x87::enter_mmx(state);
            self.mark_mmx_destination(registers, state);
        }
        let base = ptr::from_mut(state).cast::<u8>();
        let [a, b, c, d] = std::array::from_fn(|slot| {
            let offset = self.slot_offset(slot, registers.vector[slot]);
            // SAFETY: the offset is that of an element of `st` or `ymm`, inside the state.
            unsafe { base.add(offset) }
        });
        // SAFETY: the thunk reads and writes the context, if its plan is not plain, 64 bytes of operand, and in each slot the bytes of its
        // register, which `slot_offset` has found in the state; the state is borrowed for writing.
        unsafe { (self.thunk)(context, operand.0.as_mut_ptr(), a, b, c, d) };
    }

    /// Where a slot's register is in the state. In MMX state TOP is 0, so MM`i` is ST`i`.
    fn slot_offset(&self, slot: usize, number: u8) -> usize {
        match self.slots[slot] {
            Some((Slot::Mm, _)) => offset_of!(VectorState, st) + 16 * usize::from(number & 7),
            _ => offset_of!(VectorState, ymm) + 32 * index(number),
        }
    }

    /// A write to an MMX register sets the exponent above it to ones.
    fn mark_mmx_destination(&self, registers: Registers, state: &mut VectorState) {
        for (slot, number) in self.slots.iter().zip(registers.vector) {
            if *slot == Some((Slot::Mm, Use::Destination)) {
                state.st[usize::from(number & 7)][8..10].fill(0xff);
            }
        }
    }
}

const fn index(register: u8) -> usize {
    (register & 15) as usize
}

/// Takes what an x87 instruction changed; returns the exceptions in FSW.
fn take_x87(state: &mut VectorState, image: &[u8; fxsave::LEN]) -> u16 {
    let (fip, fcs, fdp, fds, fop) = (state.fip, state.fcs, state.fdp, state.fds, state.fop);
    fxsave::get_x87(state, fxsave::PointerWidth::Flat, image);
    (state.fip, state.fcs, state.fdp, state.fds, state.fop) = (fip, fcs, fdp, fds, fop);
    state.fsw & x87::EXCEPTIONS
}

/// The guest's status flags in an RFLAGS that the host can run under.
const fn thunk_flags(guest: u64) -> u64 {
    (guest & rflags::STATUS) | rflags::FIXED | rflags::IF
}

fn merge_flags(guest: &mut u64, after: u64) {
    *guest = (*guest & !rflags::STATUS) | (after & rflags::STATUS);
}
