//! Integer addition, subtraction, logic and comparison.

use super::operand::{Flat, Imm, Mem, Place, Reg, Segmented, Source, Src, Width, register, set_register};
use super::{attempt, next};
use crate::alu;
use crate::block::{Handler, Op};
use crate::decode::{Decoding, operand_size, register_offset};
use crate::flags::Status;
use crate::state::Cpu;
use iced_x86::OpKind;
use std::marker::PhantomData;

/// An instruction with a destination and a source of one width.
pub(crate) trait Binary: 'static {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op;
}

/// An instruction with one operand.
pub(crate) trait Unary: 'static {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op;
}

/// Is an operand an immediate?
pub(crate) fn is_immediate(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Immediate8
            | Immediate8_2nd
            | Immediate16
            | Immediate32
            | Immediate64
            | Immediate8to16
            | Immediate8to32
            | Immediate8to64
            | Immediate32to64
    )
}

/// The handler of a [`Binary`] family for an instruction's operands.
pub(crate) fn binary<F: Binary>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    match operand_size(d.inst, 0) {
        1 => binary_form::<F, u8>(d, op),
        2 => binary_form::<F, u16>(d, op),
        4 => binary_form::<F, u32>(d, op),
        8 => binary_form::<F, u64>(d, op),
        _ => None,
    }
}

fn binary_form<F: Binary, T: Width>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    let (first, second) = (d.inst.op0_kind(), d.inst.op1_kind());
    if first == OpKind::Register {
        op.dst = register_offset(d.inst.op0_register());
    }
    if is_immediate(second) {
        op.imm = d.inst.immediate(1);
    } else if second == OpKind::Register {
        op.src = register_offset(d.inst.op1_register());
    }
    Some(match (first, second) {
        (OpKind::Register, OpKind::Register) => F::run::<T, Reg, Src>,
        (OpKind::Register, OpKind::Memory) if d.flat => F::run::<T, Reg, Mem<Flat>>,
        (OpKind::Register, OpKind::Memory) => F::run::<T, Reg, Mem<Segmented>>,
        (OpKind::Memory, OpKind::Register) if d.flat => F::run::<T, Mem<Flat>, Src>,
        (OpKind::Memory, OpKind::Register) => F::run::<T, Mem<Segmented>, Src>,
        (OpKind::Register, kind) if is_immediate(kind) => F::run::<T, Reg, Imm>,
        (OpKind::Memory, kind) if is_immediate(kind) && d.flat => F::run::<T, Mem<Flat>, Imm>,
        (OpKind::Memory, kind) if is_immediate(kind) => F::run::<T, Mem<Segmented>, Imm>,
        _ => return None,
    })
}

/// The handler of a [`Unary`] family for an instruction's operand.
pub(crate) fn unary<F: Unary>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    match operand_size(d.inst, 0) {
        1 => unary_form::<F, u8>(d, op),
        2 => unary_form::<F, u16>(d, op),
        4 => unary_form::<F, u32>(d, op),
        8 => unary_form::<F, u64>(d, op),
        _ => None,
    }
}

fn unary_form<F: Unary, T: Width>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    Some(match d.inst.op0_kind() {
        OpKind::Register => {
            op.dst = register_offset(d.inst.op0_register());
            F::run::<T, Reg>
        }
        OpKind::Memory if d.flat => F::run::<T, Mem<Flat>>,
        OpKind::Memory => F::run::<T, Mem<Segmented>>,
        _ => return None,
    })
}

/// A computation on two values.
pub(crate) trait Alu: 'static {
    const WRITES: bool;
    fn compute<T: Width>(a: T, b: T, status: Status) -> (T, Status);
}

macro_rules! alu {
    ($($(#[$meta:meta])* $name:ident, writes $writes:literal: |$a:ident, $b:ident, $status:ident| $value:expr;)*) => { $(
        $(#[$meta])*
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            #[allow(unused_variables, reason = "only ADC and SBB read the status")]
            fn compute<T: Width>($a: T, $b: T, $status: Status) -> (T, Status) { $value }
        }
    )* };
}

fn bitwise<T: Width>(a: T, b: T, f: fn(u64, u64) -> u64) -> (T, Status) {
    alu::logic(T::from_u64(f(a.to_u64(), b.to_u64())))
}

alu! {
    /// ADD.
    Add, writes true: |a, b, s| alu::add(a, b, false);
    /// ADC.
    Adc, writes true: |a, b, s| alu::add(a, b, s.carry());
    /// SUB.
    Sub, writes true: |a, b, s| alu::sub(a, b, false);
    /// SBB.
    Sbb, writes true: |a, b, s| alu::sub(a, b, s.carry());
    /// AND.
    And, writes true: |a, b, s| bitwise(a, b, |a, b| a & b);
    /// OR.
    Or, writes true: |a, b, s| bitwise(a, b, |a, b| a | b);
    /// XOR.
    Xor, writes true: |a, b, s| bitwise(a, b, |a, b| a ^ b);
    /// CMP.
    Cmp, writes false: |a, b, s| alu::sub(a, b, false);
    /// TEST.
    Test, writes false: |a, b, s| bitwise(a, b, |a, b| a & b);
}

/// The handlers of an [`Alu`].
pub(crate) struct Plain<A>(PhantomData<A>);

impl<A: Alu> Binary for Plain<A> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let Some(b) = S::quick::<T>(cpu, this) else { return slowly::<A, T, D, S>(cpu, op) };
        if D::MEMORY && A::WRITES {
            let Some(place) = D::place::<T>(cpu, this) else { return slowly::<A, T, D, S>(cpu, op) };
            // SAFETY: `place` is in a mapped page and may be written.
            let (value, status) = A::compute(unsafe { place.read_unaligned() }, b, cpu.status);
            // SAFETY: as above.
            unsafe { place.write_unaligned(value) };
            cpu.status = status;
            next!(cpu, op);
        }
        let Some(a) = D::quick::<T>(cpu, this) else { return slowly::<A, T, D, S>(cpu, op) };
        let (value, status) = A::compute(a, b, cpu.status);
        if A::WRITES {
            set_register(cpu, this.dst, value);
        }
        cpu.status = status;
        next!(cpu, op)
    }
}

/// The slow twin of the handlers of an [`Alu`]; atomicity is not asked for or cannot be had.
#[cold]
#[inline(never)]
fn slowly<A: Alu, T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let b = attempt!(cpu, op, S::get::<T>(cpu, this));
    let a = if A::WRITES { D::get_for_update::<T>(cpu, this) } else { D::get::<T>(cpu, this) };
    let a = attempt!(cpu, op, a);
    let (value, status) = A::compute(a, b, cpu.status);
    if A::WRITES {
        attempt!(cpu, op, D::put::<T>(cpu, this, value));
    }
    cpu.status = status;
    next!(cpu, op)
}

/// Replaces the value at `place` by what `change` makes of it, in one atomic step of the host's.
///
/// # Safety
/// `place` is in a mapped page and may be read and written.
#[inline(always)]
pub(crate) unsafe fn atomically<T: Width, R>(place: *mut T, mut change: impl FnMut(T) -> (T, R)) -> R {
    loop {
        // SAFETY: the caller's promise.
        let old = unsafe { place.read_volatile_unaligned() };
        let (new, result) = change(old);
        // SAFETY: the caller's promise.
        if unsafe { compare_exchange(place, old, new) } == old.to_u64() {
            return result;
        }
    }
}

trait VolatileUnaligned<T> {
    unsafe fn read_volatile_unaligned(self) -> T;
}

impl<T: Width> VolatileUnaligned<T> for *mut T {
    #[inline(always)]
    unsafe fn read_volatile_unaligned(self) -> T {
        let value: u64;
        // SAFETY: the caller's promise; a plain load of `SIZE` bytes.
        unsafe {
            match T::SIZE {
                1 => {
                    std::arch::asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) self, options(nostack, preserves_flags, readonly))
                }
                2 => {
                    std::arch::asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) self, options(nostack, preserves_flags, readonly))
                }
                4 => {
                    std::arch::asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) self, options(nostack, preserves_flags, readonly))
                }
                _ => {
                    std::arch::asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) self, options(nostack, preserves_flags, readonly))
                }
            }
        }
        T::from_u64(value)
    }
}

/// LOCK CMPXCHG of the host's; returns what was there. The operand need not be aligned.
///
/// # Safety
/// `place` is in a mapped page and may be read and written.
#[inline(always)]
pub(crate) unsafe fn compare_exchange<T: Width>(place: *mut T, old: T, new: T) -> u64 {
    let mut seen = old.to_u64();
    let new = new.to_u64();
    // SAFETY: the caller's promise.
    unsafe {
        match T::SIZE {
            1 => {
                std::arch::asm!("lock cmpxchg byte ptr [{0}], {1:l}", in(reg) place, in(reg) new, inout("rax") seen, options(nostack))
            }
            2 => {
                std::arch::asm!("lock cmpxchg word ptr [{0}], {1:x}", in(reg) place, in(reg) new, inout("rax") seen, options(nostack))
            }
            4 => {
                std::arch::asm!("lock cmpxchg dword ptr [{0}], {1:e}", in(reg) place, in(reg) new, inout("rax") seen, options(nostack))
            }
            _ => {
                std::arch::asm!("lock cmpxchg qword ptr [{0}], {1}", in(reg) place, in(reg) new, inout("rax") seen, options(nostack))
            }
        }
    }
    T::from_u64(seen).to_u64()
}

/// The handlers of an [`Alu`] with a LOCK prefix and a memory destination.
pub(crate) struct Locked<A>(PhantomData<A>);

impl<A: Alu> Binary for Locked<A> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let (Some(b), Some(place)) = (S::quick::<T>(cpu, this), D::place::<T>(cpu, this)) else {
            return slowly::<A, T, D, S>(cpu, op);
        };
        let before = cpu.status;
        // SAFETY: `place` is in a mapped page and may be written.
        cpu.status = unsafe { atomically(place, |a| A::compute(a, b, before)) };
        next!(cpu, op)
    }
}

/// A computation on one value.
pub(crate) trait One: 'static {
    fn compute<T: Width>(a: T, status: Status) -> (T, Status);
}

/// INC.
pub(crate) struct Inc;
impl One for Inc {
    #[inline(always)]
    fn compute<T: Width>(a: T, status: Status) -> (T, Status) {
        let (value, new) = alu::add(a, T::from_u64(1), false);
        (value, new.with_carry(status.carry()))
    }
}

/// DEC.
pub(crate) struct Dec;
impl One for Dec {
    #[inline(always)]
    fn compute<T: Width>(a: T, status: Status) -> (T, Status) {
        let (value, new) = alu::sub(a, T::from_u64(1), false);
        (value, new.with_carry(status.carry()))
    }
}

/// NEG.
pub(crate) struct Neg;
impl One for Neg {
    #[inline(always)]
    fn compute<T: Width>(a: T, _: Status) -> (T, Status) {
        alu::sub(T::from_u64(0), a, false)
    }
}

/// NOT.
pub(crate) struct Not;
impl One for Not {
    #[inline(always)]
    fn compute<T: Width>(a: T, status: Status) -> (T, Status) {
        (T::from_u64(!a.to_u64()), status)
    }
}

impl<F: One> Unary for Plain<F> {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        if D::MEMORY {
            let Some(place) = D::place::<T>(cpu, this) else { return one_slowly::<F, T, D>(cpu, op) };
            // SAFETY: `place` is in a mapped page and may be written.
            let (value, status) = F::compute(unsafe { place.read_unaligned() }, cpu.status);
            // SAFETY: as above.
            unsafe { place.write_unaligned(value) };
            cpu.status = status;
            next!(cpu, op);
        }
        let (value, status) = F::compute(register::<T>(cpu, this.dst), cpu.status);
        set_register(cpu, this.dst, value);
        cpu.status = status;
        next!(cpu, op)
    }
}

#[cold]
#[inline(never)]
fn one_slowly<F: One, T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let a = attempt!(cpu, op, D::get_for_update::<T>(cpu, this));
    let (value, status) = F::compute(a, cpu.status);
    attempt!(cpu, op, D::put::<T>(cpu, this, value));
    cpu.status = status;
    next!(cpu, op)
}

impl<F: One> Unary for Locked<F> {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let Some(place) = D::place::<T>(cpu, this) else { return one_slowly::<F, T, D>(cpu, op) };
        let before = cpu.status;
        // SAFETY: `place` is in a mapped page and may be written.
        cpu.status = unsafe { atomically(place, |a| F::compute(a, before)) };
        next!(cpu, op)
    }
}

/// The register forms of a computation whose status nobody reads.
pub(crate) struct Quiet<F>(PhantomData<F>);

impl<A: Alu> Binary for Quiet<A> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        if let Some(b) = S::quick::<T>(cpu, this) {
            let value = A::compute(register(cpu, this.dst), b, cpu.status).0;
            set_register(cpu, this.dst, value);
        }
        next!(cpu, op)
    }
}

impl<F: One> Unary for Quiet<F> {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let value = F::compute::<T>(register(cpu, this.dst), cpu.status).0;
        set_register(cpu, this.dst, value);
        next!(cpu, op)
    }
}

/// XADD.
pub(crate) struct Xadd;
impl Binary for Xadd {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let b: T = register(cpu, this.src);
        let (old, status) = if let Some(place) = D::place::<T>(cpu, this) {
            // SAFETY: `place` is in a mapped page and may be written.
            unsafe {
                atomically(place, |a| {
                    let (sum, status) = alu::add(a, b, false);
                    (sum, (a, status))
                })
            }
        } else {
            let a = attempt!(cpu, op, D::get_for_update::<T>(cpu, this));
            let (sum, status) = alu::add(a, b, false);
            if !D::MEMORY {
                set_register(cpu, this.src, a);
            }
            attempt!(cpu, op, D::put::<T>(cpu, this, sum));
            (a, status)
        };
        if D::MEMORY {
            set_register(cpu, this.src, old);
        }
        cpu.status = status;
        next!(cpu, op)
    }
}

/// XCHG.
pub(crate) struct Xchg;
impl Binary for Xchg {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let b: T = register(cpu, this.src);
        let old = if let Some(place) = D::place::<T>(cpu, this) {
            // SAFETY: `place` is in a mapped page and may be written.
            unsafe { atomically(place, |a| (b, a)) }
        } else {
            let a = attempt!(cpu, op, D::get_for_update::<T>(cpu, this));
            attempt!(cpu, op, D::put::<T>(cpu, this, b));
            a
        };
        set_register(cpu, this.src, old);
        next!(cpu, op)
    }
}

/// CMPXCHG.
pub(crate) struct Cmpxchg;
impl Binary for Cmpxchg {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let (accumulator, new): (T, T) = (register(cpu, 0), register(cpu, this.src));
        let old = if let Some(place) = D::place::<T>(cpu, this) {
            // SAFETY: `place` is in a mapped page and may be written.
            T::from_u64(unsafe { compare_exchange(place, accumulator, new) })
        } else {
            let old = attempt!(cpu, op, D::get_for_update::<T>(cpu, this));
            let equal = old.to_u64() == accumulator.to_u64();
            // The destination is written either way. A 32-bit register keeps its upper half if it is not equal.
            if D::MEMORY || equal {
                attempt!(cpu, op, D::put::<T>(cpu, this, if equal { new } else { old }));
            }
            old
        };
        cpu.status = alu::sub(accumulator, old, false).1;
        if old.to_u64() != accumulator.to_u64() {
            set_register(cpu, 0, old);
        }
        next!(cpu, op)
    }
}
