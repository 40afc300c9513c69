//! Operands: registers, immediates and memory, as types that handlers are generic over.

use crate::block::Op;
use crate::mmu::Kind;
use crate::mmu::access::Scalar;
use crate::state::Cpu;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::{AccessRights, SegmentRegister};

/// An integer width.
pub(crate) trait Width: Scalar {
    const BITS: u32 = Self::SIZE as u32 * 8;
    /// The value, sign-extended.
    fn sign_extended(self) -> u64;
    /// The value rotated left.
    fn rotated_left(self, by: u32) -> Self;
}

macro_rules! width {
    ($($t:ty as $s:ty),*) => { $(impl Width for $t {
        #[inline(always)]
        fn sign_extended(self) -> u64 { self as $s as i64 as u64 }
        #[inline(always)]
        fn rotated_left(self, by: u32) -> Self { self.rotate_left(by) }
    })* };
}
width!(u8 as i8, u16 as i16, u32 as i32, u64 as i64);

/// Address-size and form flags in the high byte of [`Op::extra`]; the low byte is the register with the segment base.
pub(crate) mod extra {
    pub const ADDRESS_16: u16 = 1 << 8;
    pub const ADDRESS_32: u16 = 1 << 9;
    /// The displacement counts from the end of the instruction.
    pub const RIP_RELATIVE: u16 = 1 << 10;
    pub const LOCK: u16 = 1 << 11;
    pub const REP: u16 = 1 << 12;
    pub const REPNE: u16 = 1 << 13;
}

/// Reads a register by its byte offset.
#[inline(always)]
pub(crate) fn register<T: Scalar>(cpu: &Cpu, offset: u8) -> T {
    // SAFETY: the decoder makes offsets of whole registers (or AH…BH) inside `gpr`; `T` fits in what is left of it.
    unsafe { cpu.gpr.as_ptr().cast::<u8>().add(offset as usize).cast::<T>().read_unaligned() }
}

/// Writes a register by its byte offset; 32-bit writes clear the upper half.
#[inline(always)]
pub(crate) fn set_register<T: Scalar>(cpu: &mut Cpu, offset: u8, value: T) {
    // SAFETY: as for `register`; offsets of 32-bit operands are multiples of 8.
    unsafe {
        let place = cpu.gpr.as_mut_ptr().cast::<u8>().add(offset as usize);
        if T::SIZE == 4 {
            place.cast::<u64>().write(value.to_u64())
        } else {
            place.cast::<T>().write_unaligned(value)
        }
    }
}

/// A way to form a linear address.
pub(crate) trait Address: 'static {
    /// The linear address, if forming it takes no check.
    fn quick(cpu: &mut Cpu, op: &Op) -> Option<u64>;
    /// The linear address of an operand of `size` bytes; `None`: `stop` holds the fault.
    fn linear(cpu: &mut Cpu, op: &Op, size: usize, kind: Kind) -> Option<u64>;
}

/// 64-bit mode with 64-bit addresses.
pub(crate) struct Flat;

impl Address for Flat {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: &Op, _: usize, _: Kind) -> Option<u64> {
        Self::quick(cpu, op)
    }
    #[inline(always)]
    fn quick(cpu: &mut Cpu, op: &Op) -> Option<u64> {
        let part = |index: u8| {
            debug_assert!((index as usize) < cpu.gpr.len());
            // SAFETY: the decoder makes indices below `gpr.len()`.
            unsafe { *cpu.gpr.get_unchecked(index as usize) }
        };
        let scaled = part(op.scaled) << op.scale;
        Some(
            part(op.base)
                .wrapping_add(scaled)
                .wrapping_add(part(op.extra as u8))
                .wrapping_add(i64::from(op.disp) as u64),
        )
    }
}

/// Everything else: other address sizes, segment limits and rights.
pub(crate) struct Segmented;

impl Address for Segmented {
    #[inline(always)]
    fn quick(_: &mut Cpu, _: &Op) -> Option<u64> {
        None
    }
    #[inline(never)]
    fn linear(cpu: &mut Cpu, op: &Op, size: usize, kind: Kind) -> Option<u64> {
        let offset = cpu.effective_address(op);
        cpu.segmented(op, op.segment, offset, size, kind)
    }
}

impl Cpu {
    /// The effective address of a memory operand: the offset in its segment.
    pub(crate) fn effective_address(&self, op: &Op) -> u64 {
        let scaled = self.gpr[op.scaled as usize] << op.scale;
        let relative =
            if op.extra & extra::RIP_RELATIVE != 0 { u64::from(op.delta) + u64::from(op.len) } else { 0 };
        let sum = self.gpr[op.base as usize].wrapping_add(scaled).wrapping_add(i64::from(op.disp) as u64);
        sum.wrapping_add(relative) & address_mask(op)
    }

    /// The linear address of an offset in a segment, after the segment's checks. SDM Vol. 3, "Limit Checking",
    /// "Type Checking".
    pub(crate) fn segmented(
        &mut self,
        op: &Op,
        segment: u8,
        offset: u64,
        size: usize,
        kind: Kind,
    ) -> Option<u64> {
        let register = SegmentRegister::ALL[segment as usize];
        if self.is_64() {
            let base = match register {
                SegmentRegister::Fs | SegmentRegister::Gs => self.segment(register).base,
                _ => 0,
            };
            let _ = op;
            return Some(base.wrapping_add(offset));
        }
        let place = *self.segment(register);
        let last = offset.wrapping_add(size as u64 - 1);
        let rights = place.rights;
        let kind_bits = rights.get(AccessRights::TYPE);
        let code = kind_bits & 8 != 0;
        let type_allows = match kind {
            Kind::Read | Kind::Fetch => !code || kind_bits & 2 != 0,
            Kind::Write => !code && kind_bits & 2 != 0,
        };
        let real = !self.protected() || self.virtual_8086();
        let expand_down = !code && kind_bits & 4 != 0;
        let limit = u64::from(place.limit);
        let top = if rights.get(AccessRights::DB) { 0xffff_ffff } else { 0xffff };
        let inside = if expand_down && !real {
            offset > limit && last <= top
        } else {
            last <= limit && last >= offset
        };
        if (rights.is_usable() && type_allows || real) && inside {
            return Some(place.base.wrapping_add(offset) & 0xffff_ffff);
        }
        self.fail(if register == SegmentRegister::Ss { Exception::ss(0) } else { Exception::gp(0) })
    }
}

/// The bits of an effective address.
pub(crate) fn address_mask(op: &Op) -> u64 {
    if op.extra & extra::ADDRESS_16 != 0 {
        0xffff
    } else if op.extra & extra::ADDRESS_32 != 0 {
        0xffff_ffff
    } else {
        u64::MAX
    }
}

/// A readable operand.
///
/// A handler first tries `quick` (and `place`), which cannot fault and call nothing, and else ends in a call of its
/// slow twin, which uses the others: so the fast one needs no stack frame.
pub(crate) trait Source: 'static {
    /// The operand, if no check is left.
    fn quick<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T>;
    /// The operand; `None`: `stop` holds the fault.
    fn get<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T>;
}

/// An operand that can be written.
pub(crate) trait Place: Source {
    const MEMORY: bool;
    fn put<T: Width>(cpu: &mut Cpu, op: &Op, value: T) -> Option<()>;
    /// Where a memory operand is in this process, if it may be written and no check is left.
    fn place<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<*mut T>;
    /// Reads an operand that will be written: the write is checked first.
    fn get_for_update<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T>;
}

/// The register in [`Op::dst`].
pub(crate) struct Reg;
/// The register in [`Op::src`].
pub(crate) struct Src;
/// The immediate.
pub(crate) struct Imm;
/// The memory operand.
pub(crate) struct Mem<A>(std::marker::PhantomData<A>);

impl Source for Reg {
    #[inline(always)]
    fn quick<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        Some(register(cpu, op.dst))
    }
    #[inline(always)]
    fn get<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        Some(register(cpu, op.dst))
    }
}

impl Place for Reg {
    const MEMORY: bool = false;
    #[inline(always)]
    fn put<T: Width>(cpu: &mut Cpu, op: &Op, value: T) -> Option<()> {
        set_register(cpu, op.dst, value);
        Some(())
    }
    #[inline(always)]
    fn place<T: Width>(_: &mut Cpu, _: &Op) -> Option<*mut T> {
        None
    }
    #[inline(always)]
    fn get_for_update<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        Self::get(cpu, op)
    }
}

impl Source for Src {
    #[inline(always)]
    fn quick<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        Some(register(cpu, op.src))
    }
    #[inline(always)]
    fn get<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        Some(register(cpu, op.src))
    }
}

impl Source for Imm {
    #[inline(always)]
    fn quick<T: Width>(_: &mut Cpu, op: &Op) -> Option<T> {
        Some(T::from_u64(op.imm))
    }
    #[inline(always)]
    fn get<T: Width>(_: &mut Cpu, op: &Op) -> Option<T> {
        Some(T::from_u64(op.imm))
    }
}

impl<A: Address> Source for Mem<A> {
    #[inline(always)]
    fn quick<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        let linear = A::quick(cpu, op)?;
        cpu.load_quick(linear)
    }
    #[inline(always)]
    fn get<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        let linear = A::linear(cpu, op, T::SIZE, Kind::Read)?;
        cpu.load(op, linear)
    }
}

impl<A: Address> Place for Mem<A> {
    const MEMORY: bool = true;
    #[inline(always)]
    fn put<T: Width>(cpu: &mut Cpu, op: &Op, value: T) -> Option<()> {
        let linear = A::linear(cpu, op, T::SIZE, Kind::Write)?;
        cpu.store(op, linear, value)
    }
    #[inline(always)]
    fn place<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<*mut T> {
        let linear = A::quick(cpu, op)?;
        cpu.writable_host(linear)
    }
    #[inline(never)]
    fn get_for_update<T: Width>(cpu: &mut Cpu, op: &Op) -> Option<T> {
        let linear = A::linear(cpu, op, T::SIZE, Kind::Write)?;
        cpu.read_for_update(op, linear, T::SIZE).map(T::from_u64)
    }
}

impl Cpu {
    /// Reads an operand after checking that it may be written, so that the write cannot fault.
    #[cold]
    #[inline(never)]
    fn read_for_update(&mut self, op: &Op, linear: u64, size: usize) -> Option<u64> {
        self.probe_write(op, linear, size)?;
        let mut bytes = [0; 8];
        self.read_bytes(op, linear, &mut bytes[..size])?;
        Some(u64::from_le_bytes(bytes))
    }
}
