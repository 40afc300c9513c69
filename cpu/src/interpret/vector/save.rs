//! LDMXCSR, STMXCSR, FXSAVE, FXRSTOR and the XSAVE family.

use super::super::operand::Address;
use super::by_address;
use crate::block::{Handler, Op};
use crate::decode::Decoding;
use crate::mmu::Kind;
use crate::native::fxsave::{self, PointerWidth};
use crate::native::software::{Restore, Save};
use crate::native::xsave::{self, Area, Header, Registers};
use crate::native::{Class, Software, Terms};
use crate::state::Cpu;
use vmcs12::arch::event::Exception;
use vmcs12::control::ENABLE_XSAVES_XRSTORS;
use vmcs12::cpu_state::gpr::{RAX, RDX};

/// Where an XSAVE area has its header.
const HEADER: u64 = 512;

/// The handler; the pointer width is in `src`, the instruction in `dst`.
pub(super) fn select(software: Software, terms: Terms, d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if let Software::Fxsave(width)
    | Software::Fxrstor(width)
    | Software::Xsave(_, width)
    | Software::Xrstor(_, width) = software
    {
        op.src = u8::from(width == PointerWidth::Flat);
    }
    let is_vex = terms.class == Class::Avx;
    Some(match software {
        Software::Ldmxcsr if is_vex => by_address!(d, ldmxcsr, true),
        Software::Ldmxcsr => by_address!(d, ldmxcsr, false),
        Software::Stmxcsr if is_vex => by_address!(d, stmxcsr, true),
        Software::Stmxcsr => by_address!(d, stmxcsr, false),
        Software::Fxsave(_) => by_address!(d, fxsave_image),
        Software::Fxrstor(_) => by_address!(d, fxrstor_image),
        Software::Xsave(save, _) => {
            op.dst = save as u8;
            by_address!(d, xsave_area)
        }
        Software::Xrstor(restore, _) => {
            op.dst = restore as u8;
            by_address!(d, xrstor_area)
        }
        _ => return None,
    })
}

const fn class(vex: bool) -> Class {
    if vex { Class::Avx } else { Class::Sse }
}

fn pointer_width(op: &Op) -> PointerWidth {
    if op.src == 0 { PointerWidth::Selectors } else { PointerWidth::Flat }
}

#[inline(never)]
fn ldmxcsr<A: Address, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.vector_ready(class(VEX))?;
    let linear = A::linear(cpu, op, 4, Kind::Read)?;
    let value = cpu.load::<u32>(op, linear)?;
    match xsave::checked_mxcsr(value) {
        Ok(value) => cpu.vector_state().mxcsr = value,
        Err(_) => return cpu.fail(Exception::gp(0)),
    }
    Some(())
}

#[inline(never)]
fn stmxcsr<A: Address, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.vector_ready(class(VEX))?;
    let linear = A::linear(cpu, op, 4, Kind::Write)?;
    let value = cpu.vector_state().mxcsr;
    cpu.store::<u32>(op, linear, value)?;
    Some(())
}

#[inline(never)]
fn fxsave_image<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.fxsave::<A>(op)
}

#[inline(never)]
fn fxrstor_image<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.fxrstor::<A>(op)
}

#[inline(never)]
fn xsave_area<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.xsave::<A>(op)
}

#[inline(never)]
fn xrstor_area<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.xrstor::<A>(op)
}

impl Cpu {
    fn fxsave<A: Address>(&mut self, op: &Op) -> Option<()> {
        self.vector_ready(Class::X87)?;
        let linear = A::linear(self, op, fxsave::LEN, Kind::Write)?;
        self.aligned(linear, 16)?;
        let count = self.vector_registers();
        let mut image = [0; fxsave::LEN];
        let state = self.vector_state();
        fxsave::put_x87(state, pointer_width(op), &mut image);
        fxsave::put_mxcsr(state, &mut image);
        fxsave::put_xmm(state, count, &mut image);
        self.write_operand(op, linear, &image[..fxsave::XMM + 16 * count])
    }

    fn fxrstor<A: Address>(&mut self, op: &Op) -> Option<()> {
        self.vector_ready(Class::X87)?;
        let linear = A::linear(self, op, fxsave::LEN, Kind::Read)?;
        self.aligned(linear, 16)?;
        let mut image = [0; fxsave::LEN];
        self.read_operand(op, linear, &mut image)?;
        let Ok(mxcsr) = xsave::checked_mxcsr(fxsave::mxcsr(&image)) else {
            return self.fail(Exception::gp(0));
        };
        let count = self.vector_registers();
        let state = self.vector_state();
        state.mxcsr = mxcsr;
        fxsave::get_x87(state, pointer_width(op), &image);
        fxsave::get_xmm(state, count, &image);
        Some(())
    }

    /// The control bits, and what only XSAVES and XRSTORS need.
    fn xsave_ready(&mut self, is_supervisor: bool) -> Option<()> {
        if is_supervisor && !self.controls.has(ENABLE_XSAVES_XRSTORS) {
            return self.fail(Exception::UD);
        }
        self.vector_ready(Class::Xsave)?;
        if is_supervisor && self.cpl != 0 { self.fail(Exception::gp(0)) } else { Some(()) }
    }

    /// EDX:EAX and XCR0. No supervisor component exists, so IA32_XSS is 0 and never causes an exit.
    fn requested_components(&mut self) -> u64 {
        let mask = self.gpr[RDX] << 32 | self.gpr[RAX] & 0xffff_ffff;
        mask & self.state().xcr0
    }

    fn xsave<A: Address>(&mut self, op: &Op) -> Option<()> {
        let save = [Save::Xsave, Save::Xsaveopt, Save::Xsavec, Save::Xsaves][usize::from(op.dst & 3)];
        self.xsave_ready(save == Save::Xsaves)?;
        let linear = A::linear(self, op, xsave::AREA_LEGACY, Kind::Write)?;
        self.aligned(linear, 64)?;
        let mut old = [0; 8];
        if matches!(save, Save::Xsave | Save::Xsaveopt) {
            self.read_operand(op, linear.wrapping_add(HEADER), &mut old)?;
        }
        let requested = self.requested_components();
        let (count, pkru) = (self.vector_registers(), self.pkru);
        let registers = Registers { vector: self.vector_state(), pkru, count };
        let area = xsave::save(save, pointer_width(op), requested, u64::from_le_bytes(old), registers);
        self.write_area(op, linear, &area)
    }

    /// Writes the ranges that count; all are probed first.
    fn write_area(&mut self, op: &Op, linear: u64, area: &Area) -> Option<()> {
        for range in &area.ranges {
            self.writable_operand(op, linear.wrapping_add(range.start as u64), range.len())?;
        }
        for range in &area.ranges {
            self.write_operand(op, linear.wrapping_add(range.start as u64), &area.bytes[range.clone()])?;
        }
        Some(())
    }

    fn xrstor<A: Address>(&mut self, op: &Op) -> Option<()> {
        let restore = if op.dst == 0 { Restore::Xrstor } else { Restore::Xrstors };
        self.xsave_ready(restore == Restore::Xrstors)?;
        let linear = A::linear(self, op, xsave::AREA_LEGACY, Kind::Read)?;
        self.aligned(linear, 64)?;
        let mut header = [0; 64];
        self.read_operand(op, linear.wrapping_add(HEADER), &mut header)?;
        let xcr0 = self.state().xcr0;
        let Ok(header) = Header::check(restore, &header, xcr0) else {
            return self.fail(Exception::gp(0));
        };
        let (requested, count) = (self.requested_components(), self.vector_registers());
        let mut bytes = [0; xsave::AREA];
        for range in header.ranges(requested, count) {
            self.read_operand(op, linear.wrapping_add(range.start as u64), &mut bytes[range])?;
        }
        match header.restore(pointer_width(op), requested, &bytes, self.vector_state(), count) {
            Ok(Some(pkru)) if pkru != self.pkru => {
                self.pkru = pkru;
                self.refresh_context();
                Some(())
            }
            Ok(_) => Some(()),
            Err(_) => self.fail(Exception::gp(0)),
        }
    }
}
