//! Moves: copies of 4 to 32 bytes, without a thunk.

use super::super::operand::{Address, Flat, Segmented};
use super::super::{attempt, next};
use crate::block::{Handler, Op};
use crate::decode::Decoding;
use crate::mmu::Kind;
use crate::native::{Class, Move, Terms};
use crate::state::Cpu;

/// Bytes of a register that a legacy instruction, and a VEX-encoded one, determine.
const LEGACY: usize = 16;
const VEX: usize = 32;

macro_rules! sized {
    ($bytes:expr, $until:expr, $handler:ident $(, $address:ident)?) => {
        match ($bytes, usize::from($until)) {
            (4, LEGACY) => $handler::<$($address,)? 4, LEGACY>,
            (8, LEGACY) => $handler::<$($address,)? 8, LEGACY>,
            (_, LEGACY) => $handler::<$($address,)? 16, LEGACY>,
            (4, _) => $handler::<$($address,)? 4, VEX>,
            (8, _) => $handler::<$($address,)? 8, VEX>,
            (16, _) => $handler::<$($address,)? 16, VEX>,
            (_, _) => $handler::<$($address,)? 32, VEX>,
        }
    };
}

/// The handler of a move: registers in `dst` and `src`, the alignment in the immediate.
pub(super) fn select(copy: Move, terms: Terms, d: &Decoding<'_>, op: &mut Op) -> Handler {
    op.imm = u64::from(terms.alignment);
    let until = if terms.class == Class::Avx { VEX as u8 } else { LEGACY as u8 };
    match copy {
        Move::Load { to, bytes, .. } => {
            op.dst = to;
            if d.flat { sized!(bytes, until, load, Flat) } else { sized!(bytes, until, load, Segmented) }
        }
        Move::Store { from, bytes } => {
            op.src = from;
            if d.flat { sized!(bytes, until, store, Flat) } else { sized!(bytes, until, store, Segmented) }
        }
        Move::Copy { to, from, bytes, .. } => {
            (op.dst, op.src) = (to, from);
            sized!(bytes, until, copy_register)
        }
        Move::FromGeneral { to, from, bytes, .. } => {
            (op.dst, op.src) = (to, from);
            sized!(bytes, until, from_general)
        }
        Move::ToGeneral { to, from, bytes } => {
            (op.dst, op.src) = (to, from);
            sized!(bytes, until, to_general)
        }
        Move::Signs { to, from } => {
            (op.dst, op.src) = (to, from);
            signs
        }
        Move::Zero { to, .. } => {
            op.dst = to;
            sized!(16, until, zero)
        }
    }
}

const fn class(until: usize) -> Class {
    if until == VEX { Class::Avx } else { Class::Sse }
}

impl Cpu {
    #[inline(always)]
    fn ymm(&mut self, number: u8) -> &mut [u8; 32] {
        &mut self.vector_state().ymm[usize::from(number & 15)]
    }

    /// Replaces the low bytes of a register, and clears those up to `UNTIL`.
    #[inline(always)]
    fn set_ymm<const BYTES: usize, const UNTIL: usize>(&mut self, number: u8, value: [u8; BYTES]) {
        let register = self.ymm(number);
        register[..BYTES].copy_from_slice(&value);
        register[BYTES..UNTIL].fill(0);
    }
}

unsafe fn load<A: Address, const BYTES: usize, const UNTIL: usize>(
    cpu: &mut Cpu,
    op: *const Op,
) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(UNTIL) }));
    let linear = attempt!(cpu, op, A::linear(cpu, this, BYTES, Kind::Read));
    attempt!(cpu, op, cpu.aligned(linear, this.imm as u8));
    match cpu.readable_host(linear) {
        Some(host) if in_page::<BYTES>(linear) => {
            // SAFETY: `host` is in a mapped page, and the whole value lies in it.
            let value = unsafe { host.cast::<[u8; BYTES]>().read_unaligned() };
            cpu.set_ymm::<BYTES, UNTIL>(this.dst, value);
        }
        _ => attempt!(cpu, op, cpu.load_slowly::<BYTES, UNTIL>(this, linear)),
    }
    next!(cpu, op)
}

unsafe fn store<A: Address, const BYTES: usize, const UNTIL: usize>(
    cpu: &mut Cpu,
    op: *const Op,
) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(UNTIL) }));
    let linear = attempt!(cpu, op, A::linear(cpu, this, BYTES, Kind::Write));
    attempt!(cpu, op, cpu.aligned(linear, this.imm as u8));
    match cpu.writable_host::<u8>(linear) {
        Some(host) if in_page::<BYTES>(linear) => {
            let register = cpu.ymm(this.src).as_ptr();
            // SAFETY: `host` is in a mapped page, and so are the bytes after it up to the page's end; guest memory
            // and the register do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(register, host, BYTES) };
        }
        _ => attempt!(cpu, op, cpu.store_slowly::<BYTES>(this, linear)),
    }
    next!(cpu, op)
}

/// Does an operand that begins here end in the same page?
#[inline(always)]
const fn in_page<const BYTES: usize>(linear: u64) -> bool {
    linear & 0xfff <= 4096 - BYTES as u64
}

impl Cpu {
    #[cold]
    #[inline(never)]
    fn load_slowly<const BYTES: usize, const UNTIL: usize>(&mut self, op: &Op, linear: u64) -> Option<()> {
        let mut value = [0; BYTES];
        self.read_bytes(op, linear, &mut value)?;
        self.set_ymm::<BYTES, UNTIL>(op.dst, value);
        Some(())
    }

    #[cold]
    #[inline(never)]
    fn store_slowly<const BYTES: usize>(&mut self, op: &Op, linear: u64) -> Option<()> {
        let register = *self.ymm(op.src);
        self.write_bytes(op, linear, &register[..BYTES])
    }
}

unsafe fn copy_register<const BYTES: usize, const UNTIL: usize>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(UNTIL) }));
    let source = *cpu.ymm(this.src);
    let value = std::array::from_fn(|i| source[i]);
    cpu.set_ymm::<BYTES, UNTIL>(this.dst, value);
    next!(cpu, op)
}

unsafe fn from_general<const BYTES: usize, const UNTIL: usize>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(UNTIL) }));
    let value = low::<BYTES>(cpu.gpr[usize::from(this.src)]);
    cpu.set_ymm::<8, UNTIL>(this.dst, value.to_le_bytes());
    next!(cpu, op)
}

unsafe fn to_general<const BYTES: usize, const UNTIL: usize>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(UNTIL) }));
    let source = *cpu.ymm(this.src);
    let value = u64::from_le_bytes(std::array::from_fn(|i| source[i]));
    cpu.gpr[usize::from(this.dst)] = low::<BYTES>(value);
    next!(cpu, op)
}

unsafe fn zero<const BYTES: usize, const UNTIL: usize>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(UNTIL) }));
    cpu.set_ymm::<BYTES, UNTIL>(this.dst, [0; BYTES]);
    next!(cpu, op)
}

unsafe fn signs(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(Class::Sse));
    cpu.gpr[usize::from(this.dst)] = crate::native::moves::signs(cpu.ymm(this.src));
    next!(cpu, op)
}

/// The low 4 or 8 bytes of a general register's value.
#[inline(always)]
const fn low<const BYTES: usize>(value: u64) -> u64 {
    if BYTES == 4 { value & 0xffff_ffff } else { value }
}
