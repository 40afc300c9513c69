//! MUL, IMUL, DIV, IDIV, MULX and the decimal adjustments.

use super::arith::{Binary, Unary};
use super::operand::{Place, Source, Width, register, set_register};
use super::{attempt, next};
use crate::block::Op;
use crate::flags::Status;
use crate::state::Cpu;
use vmcs12::arch::event::Exception;

/// Reads the double-width accumulator: AX, DX:AX, EDX:EAX or RDX:RAX.
fn accumulator<T: Width>(cpu: &Cpu) -> u128 {
    if T::SIZE == 1 {
        return u128::from(cpu.gpr[0] & 0xffff);
    }
    let (low, high): (T, T) = (register(cpu, 0), register(cpu, 16));
    u128::from(low.to_u64()) | u128::from(high.to_u64()) << T::BITS
}

fn set_accumulator<T: Width>(cpu: &mut Cpu, low: u64, high: u64) {
    if T::SIZE == 1 {
        set_register(cpu, 0, ((low & 0xff) | (high & 0xff) << 8) as u16);
    } else {
        set_register(cpu, 0, T::from_u64(low));
        set_register(cpu, 16, T::from_u64(high));
    }
}

/// MUL.
pub(crate) struct Mul;
impl Unary for Mul {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let b = attempt!(cpu, op, D::get::<T>(cpu, this));
        let a: T = register(cpu, 0);
        let product = u128::from(a.to_u64()) * u128::from(b.to_u64());
        let (low, high) = (T::from_u64(product as u64), (product >> T::BITS) as u64);
        set_accumulator::<T>(cpu, low.to_u64(), high);
        cpu.status = Status::explicit(low.sign_extended(), high != 0, high != 0);
        next!(cpu, op)
    }
}

#[inline(always)]
fn signed_product<T: Width>(a: T, b: T) -> (i128, Status) {
    if T::SIZE < 8 {
        let product = (a.sign_extended() as i64) * (b.sign_extended() as i64);
        let low = T::from_u64(product as u64);
        let lost = low.sign_extended() as i64 != product;
        return (i128::from(product), Status::explicit(low.sign_extended(), lost, lost));
    }
    let product = i128::from(a.sign_extended() as i64) * i128::from(b.sign_extended() as i64);
    let low = T::from_u64(product as u64);
    let lost = i128::from(low.sign_extended() as i64) != product;
    (product, Status::explicit(low.sign_extended(), lost, lost))
}

/// IMUL with one operand.
pub(crate) struct Imul1;
impl Unary for Imul1 {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let b = attempt!(cpu, op, D::get::<T>(cpu, this));
        let (product, status) = signed_product::<T>(register(cpu, 0), b);
        set_accumulator::<T>(cpu, product as u64, (product >> T::BITS) as u64);
        cpu.status = status;
        next!(cpu, op)
    }
}

/// IMUL with two operands.
pub(crate) struct Imul2;
impl Binary for Imul2 {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let b = attempt!(cpu, op, S::get::<T>(cpu, this));
        let (product, status) = signed_product::<T>(register(cpu, this.dst), b);
        set_register(cpu, this.dst, T::from_u64(product as u64));
        cpu.status = status;
        next!(cpu, op)
    }
}

/// IMUL with an immediate.
pub(crate) struct Imul3;
impl Binary for Imul3 {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let b = attempt!(cpu, op, S::get::<T>(cpu, this));
        let (product, status) = signed_product::<T>(b, T::from_u64(this.imm));
        set_register(cpu, this.dst, T::from_u64(product as u64));
        cpu.status = status;
        next!(cpu, op)
    }
}

/// DIV. The status flags are undefined; they stay.
pub(crate) struct Div;
impl Unary for Div {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let divisor = u128::from(attempt!(cpu, op, D::get::<T>(cpu, this)).to_u64());
        let dividend = accumulator::<T>(cpu);
        if divisor == 0 || (dividend >> T::BITS) >= divisor {
            return cpu.raise(op, Exception::DE);
        }
        let (quotient, remainder) = match u64::try_from(dividend) {
            Ok(dividend) => (dividend / divisor as u64, dividend % divisor as u64),
            Err(_) => ((dividend / divisor) as u64, (dividend % divisor) as u64),
        };
        set_accumulator::<T>(cpu, quotient, remainder);
        next!(cpu, op)
    }
}

/// IDIV. The status flags are undefined; they stay.
pub(crate) struct Idiv;
impl Unary for Idiv {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let divisor = i128::from(attempt!(cpu, op, D::get::<T>(cpu, this)).sign_extended() as i64);
        let unused = 128 - 2 * T::BITS;
        let dividend = ((accumulator::<T>(cpu) << unused) as i128) >> unused;
        let Some(quotient) = dividend.checked_div(divisor) else {
            return cpu.raise(op, Exception::DE);
        };
        if i128::from(T::from_u64(quotient as u64).sign_extended() as i64) != quotient {
            return cpu.raise(op, Exception::DE);
        }
        set_accumulator::<T>(cpu, quotient as u64, (dividend % divisor) as u64);
        next!(cpu, op)
    }
}

/// MULX: `dst` the high half, the register in `imm` the low half.
pub(crate) struct Mulx;
impl Binary for Mulx {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let b = attempt!(cpu, op, S::get::<T>(cpu, this));
        let a: T = register(cpu, 16);
        let product = u128::from(a.to_u64()) * u128::from(b.to_u64());
        // If both destinations are one register it holds the high half.
        set_register(cpu, this.imm as u8, T::from_u64(product as u64));
        set_register(cpu, this.dst, T::from_u64((product >> T::BITS) as u64));
        next!(cpu, op)
    }
}

/// The decimal adjustments, which exist outside 64-bit mode.
pub(crate) mod decimal {
    use super::*;
    use vmcs12::arch::rflags;

    fn set_al(cpu: &mut Cpu, al: u8) {
        set_register(cpu, 0, al);
    }

    fn status(al: u8, carry: bool, adjust: bool) -> Status {
        let mut bits = Status::logical(al as i8 as u64).bits();
        bits |= if carry { rflags::CF } else { 0 } | if adjust { rflags::AF } else { 0 };
        Status::from_bits(bits)
    }

    fn adjust_decimal(cpu: &mut Cpu, op: *const Op, add: bool) -> *const Op {
        let old = cpu.gpr[0] as u8;
        let (old_carry, adjust) = (cpu.status.carry(), cpu.status.adjust());
        let step = |al: u8, by: u8| if add { al.wrapping_add(by) } else { al.wrapping_sub(by) };
        let (mut al, mut carry) = (old, false);
        let low = old & 15 > 9 || adjust;
        if low {
            al = step(al, 6);
            carry = old_carry || (if add { old > 0xf9 } else { old < 6 });
        }
        if old > 0x99 || old_carry {
            al = step(al, 0x60);
            carry = true;
        }
        set_al(cpu, al);
        cpu.status = status(al, carry, low);
        next!(cpu, op)
    }

    fn adjust_ascii(cpu: &mut Cpu, op: *const Op, add: bool) -> *const Op {
        let ax = cpu.gpr[0] as u16;
        let adjust = ax & 15 > 9 || cpu.status.adjust();
        let ax = match (adjust, add) {
            (true, true) => ax.wrapping_add(0x106),
            (true, false) => ax.wrapping_sub(6).wrapping_sub(0x100),
            (false, _) => ax,
        } & 0xff0f;
        set_register(cpu, 0, ax);
        cpu.status = status(ax as u8, adjust, adjust);
        next!(cpu, op)
    }

    /// DAA.
    pub(crate) unsafe fn daa(cpu: &mut Cpu, op: *const Op) -> *const Op {
        adjust_decimal(cpu, op, true)
    }
    /// DAS.
    pub(crate) unsafe fn das(cpu: &mut Cpu, op: *const Op) -> *const Op {
        adjust_decimal(cpu, op, false)
    }
    /// AAA.
    pub(crate) unsafe fn aaa(cpu: &mut Cpu, op: *const Op) -> *const Op {
        adjust_ascii(cpu, op, true)
    }
    /// AAS.
    pub(crate) unsafe fn aas(cpu: &mut Cpu, op: *const Op) -> *const Op {
        adjust_ascii(cpu, op, false)
    }

    /// AAM.
    pub(crate) unsafe fn aam(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let base = unsafe { (*op).imm } as u8;
        let al = cpu.gpr[0] as u8;
        if base == 0 {
            return cpu.raise(op, Exception::DE);
        }
        set_register(cpu, 0, u16::from(al / base) << 8 | u16::from(al % base));
        cpu.status = status(al % base, false, false);
        next!(cpu, op)
    }

    /// AAD.
    pub(crate) unsafe fn aad(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let base = unsafe { (*op).imm } as u8;
        let (al, ah) = (cpu.gpr[0] as u8, (cpu.gpr[0] >> 8) as u8);
        let al = al.wrapping_add(ah.wrapping_mul(base));
        set_register(cpu, 0, u16::from(al));
        cpu.status = status(al, false, false);
        next!(cpu, op)
    }

    /// SALC.
    pub(crate) unsafe fn salc(cpu: &mut Cpu, op: *const Op) -> *const Op {
        let al = if cpu.status.carry() { 0xff } else { 0 };
        set_al(cpu, al);
        next!(cpu, op)
    }
}
