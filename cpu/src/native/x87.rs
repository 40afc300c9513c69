//! x87 state in software: status, tags, the stack's rotation, the environment formats, and the image in which
//! the host executes an instruction.

use vmcs12::cpu_state::VectorState;

/// FSW bits 5:0, the exceptions; FCW has their masks in the same places.
pub const EXCEPTIONS: u16 = 0x3f;
/// FSW and FCW: the inexact result, which withholds no store.
pub const PRECISION: u16 = 1 << 5;
/// FSW: stack fault.
const STACK_FAULT: u16 = 1 << 6;
/// FSW: error summary.
pub const SUMMARY: u16 = 1 << 7;
/// FSW: busy, a copy of the error summary.
const BUSY: u16 = 1 << 15;
/// FSW bits 13:11: the physical register that is ST0.
const TOP: u16 = 7 << 11;
const TOP_SHIFT: u32 = 11;
/// FOP has 11 bits.
const OPCODE: u16 = 0x7ff;
/// FCW after FNINIT.
const INITIAL_CONTROL: u16 = 0x37f;
/// FCW bit 6 reads as 1 and bits 7, 13–15 as 0.
const CONTROL_FIXED_ONE: u16 = 0x40;
const CONTROL_DEFINED: u16 = 0x1f7f;

/// The physical register that is ST0.
pub const fn top(state: &VectorState) -> usize {
    (state.fsw as usize >> TOP_SHIFT) & 7
}

/// Is an unmasked exception pending? SDM Vol. 1, "x87 FPU Status Register", ES.
pub const fn pending(state: &VectorState) -> bool {
    state.fsw & SUMMARY != 0
}

/// Makes ES and B follow the exceptions and their masks, as any load of FCW or FSW does.
pub fn settle(state: &mut VectorState) {
    let unmasked = state.fsw & !state.fcw & EXCEPTIONS != 0;
    state.fsw = (state.fsw & !(SUMMARY | BUSY)) | if unmasked { SUMMARY | BUSY } else { 0 };
}

/// Moves TOP; the physical registers stay, so that the stack order rotates.
pub fn set_top(state: &mut VectorState, new: usize) {
    let rotation = (new + 8 - top(state)) % 8;
    state.st.rotate_left(rotation);
    state.fsw = (state.fsw & !TOP) | ((new as u16 & 7) << TOP_SHIFT);
}

/// FLDCW.
pub fn load_control(state: &mut VectorState, value: u16) {
    state.fcw = (value & CONTROL_DEFINED) | CONTROL_FIXED_ONE;
    settle(state);
}

/// FNCLEX.
pub fn clear_exceptions(state: &mut VectorState) {
    state.fsw &= !(EXCEPTIONS | STACK_FAULT | SUMMARY | BUSY);
}

/// FNINIT: the registers keep their contents but are tagged empty.
pub fn initialize(state: &mut VectorState) {
    set_top(state, 0);
    state.fcw = INITIAL_CONTROL;
    state.fsw = 0;
    state.ftw = 0;
    set_pointers(state, &Pointers::default());
    state.fop = 0;
}

/// What an MMX instruction does to the x87 state. SDM Vol. 3, "The MMX State and MMX Register Aliasing".
pub fn enter_mmx(state: &mut VectorState) {
    set_top(state, 0);
    state.ftw = 0xff;
}

/// EMMS.
pub fn leave_mmx(state: &mut VectorState) {
    set_top(state, 0);
    state.ftw = 0;
}

/// Addresses of the last non-control instruction and of its operand.
/// SDM Vol. 1, "x87 FPU Instruction and Data (Operand) Pointers".
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Pointers {
    /// FIP.
    pub fip: u64,
    /// FCS.
    pub fcs: u16,
    /// FDP.
    pub fdp: u64,
    /// FDS.
    pub fds: u16,
}

fn set_pointers(state: &mut VectorState, pointers: &Pointers) {
    (state.fip, state.fcs, state.fdp, state.fds) = (pointers.fip, pointers.fcs, pointers.fdp, pointers.fds);
}

/// Operand size of FLDENV, FNSTENV, FRSTOR and FNSAVE, and whether the mode has selectors.
/// SDM Vol. 1, "Saving the x87 FPU's State with FSTENV/FNSTENV and FSAVE/FNSAVE".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Layout {
    Real16,
    Real32,
    Protected16,
    Protected32,
}

/// Length of the longest environment.
pub const ENVIRONMENT_MAX: usize = 28;
/// Length of the longest FNSAVE image.
pub const SAVE_MAX: usize = ENVIRONMENT_MAX + 80;

impl Layout {
    /// Length of the environment.
    pub const fn environment_len(self) -> usize {
        match self {
            Self::Real16 | Self::Protected16 => 14,
            Self::Real32 | Self::Protected32 => 28,
        }
    }
    /// Length of the environment and the eight registers.
    pub const fn save_len(self) -> usize {
        self.environment_len() + 80
    }
}

/// FNSTENV's image, and then its effect: all exceptions masked.
pub fn store_environment(state: &mut VectorState, layout: Layout) -> [u8; ENVIRONMENT_MAX] {
    let image = environment(state, layout);
    state.fcw |= EXCEPTIONS;
    settle(state);
    image
}

/// FLDENV.
pub fn load_environment(state: &mut VectorState, layout: Layout, image: &[u8; ENVIRONMENT_MAX]) {
    let fields = fields(layout, image);
    set_top(state, usize::from(fields.fsw >> TOP_SHIFT) & 7);
    state.fsw = fields.fsw;
    state.ftw = abridged_tags(fields.tags);
    state.fop = fields.opcode & OPCODE;
    set_pointers(state, &fields.pointers);
    load_control(state, fields.fcw);
}

/// FNSAVE's image, and then its effect: FNINIT.
pub fn save(state: &mut VectorState, layout: Layout) -> [u8; SAVE_MAX] {
    let mut image = [0; SAVE_MAX];
    image[..ENVIRONMENT_MAX].copy_from_slice(&environment(state, layout));
    for (register, at) in state.st.iter().zip(image[layout.environment_len()..].chunks_exact_mut(10)) {
        at.copy_from_slice(&register[..10]);
    }
    initialize(state);
    image
}

/// FRSTOR.
pub fn restore(state: &mut VectorState, layout: Layout, image: &[u8; SAVE_MAX]) {
    let mut environment = [0; ENVIRONMENT_MAX];
    environment.copy_from_slice(&image[..ENVIRONMENT_MAX]);
    load_environment(state, layout, &environment);
    for (register, from) in state.st.iter_mut().zip(image[layout.environment_len()..].chunks_exact(10)) {
        *register = [0; 16];
        register[..10].copy_from_slice(from);
    }
}

/// The environment's fields, whatever the layout.
struct Fields {
    fcw: u16,
    fsw: u16,
    tags: u16,
    opcode: u16,
    pointers: Pointers,
}

fn environment(state: &VectorState, layout: Layout) -> [u8; ENVIRONMENT_MAX] {
    let (fip, fdp) = (state.fip as u32, state.fdp as u32);
    let code = (u32::from(state.fcs) << 4).wrapping_add(fip);
    let data = (u32::from(state.fds) << 4).wrapping_add(fdp);
    let (fcs, fds, fop) = (u32::from(state.fcs), u32::from(state.fds), u32::from(state.fop));
    let words = [state.fcw, state.fsw, full_tags(state)].map(u32::from);
    let mut image = [0; ENVIRONMENT_MAX];
    match layout {
        Layout::Protected32 => {
            let tail = [fip, fcs | fop << 16, fdp, fds | HIGH_ONES];
            put_dwords(&mut image, words.map(|word| word | HIGH_ONES), tail);
        }
        Layout::Real32 => {
            let tail = [
                code & 0xffff | HIGH_ONES,
                fop | (code >> 16) << 12,
                data & 0xffff | HIGH_ONES,
                (data >> 16) << 12,
            ];
            put_dwords(&mut image, words.map(|word| word | HIGH_ONES), tail);
        }
        Layout::Protected16 => put_words(&mut image, words, [fip, fcs, fdp, fds]),
        Layout::Real16 => {
            put_words(&mut image, words, [code, fop | (code >> 16) << 12, data, (data >> 16) << 12]);
        }
    }
    image
}

/// The reserved upper halves of 32-bit words read as ones.
const HIGH_ONES: u32 = 0xffff_0000;

fn put_dwords(image: &mut [u8; ENVIRONMENT_MAX], head: [u32; 3], tail: [u32; 4]) {
    for (value, at) in head.into_iter().chain(tail).zip(image.chunks_exact_mut(4)) {
        at.copy_from_slice(&value.to_le_bytes());
    }
}

fn put_words(image: &mut [u8; ENVIRONMENT_MAX], head: [u32; 3], tail: [u32; 4]) {
    for (value, at) in head.into_iter().chain(tail).zip(image.chunks_exact_mut(2)) {
        at.copy_from_slice(&(value as u16).to_le_bytes());
    }
}

fn fields(layout: Layout, image: &[u8; ENVIRONMENT_MAX]) -> Fields {
    let word = |i: usize| u16::from_le_bytes([image[2 * i], image[2 * i + 1]]);
    let dword = |i: usize| u32::from(word(2 * i)) | u32::from(word(2 * i + 1)) << 16;
    let protected = |fip: u32, fcs, fdp: u32, fds| Pointers { fip: fip.into(), fcs, fdp: fdp.into(), fds };
    let real = |fip: u32, fdp: u32| Pointers { fip: fip.into(), fcs: 0, fdp: fdp.into(), fds: 0 };
    match layout {
        Layout::Protected32 => Fields {
            fcw: word(0),
            fsw: word(2),
            tags: word(4),
            opcode: word(9),
            pointers: protected(dword(3), word(8), dword(5), word(12)),
        },
        Layout::Real32 => Fields {
            fcw: word(0),
            fsw: word(2),
            tags: word(4),
            opcode: word(8),
            pointers: real(
                u32::from(word(6)) | (dword(4) >> 12) << 16,
                u32::from(word(10)) | (dword(6) >> 12) << 16,
            ),
        },
        Layout::Protected16 => Fields {
            fcw: word(0),
            fsw: word(1),
            tags: word(2),
            opcode: 0,
            pointers: protected(word(3).into(), word(4), word(5).into(), word(6)),
        },
        Layout::Real16 => Fields {
            fcw: word(0),
            fsw: word(1),
            tags: word(2),
            opcode: word(4),
            pointers: real(
                u32::from(word(3)) | u32::from(word(4) >> 12) << 16,
                u32::from(word(5)) | u32::from(word(6) >> 12) << 16,
            ),
        },
    }
}

/// Two bits for each physical register: valid, zero, special, empty. SDM Vol. 1, "x87 FPU Tag Word".
fn full_tags(state: &VectorState) -> u16 {
    (0..8).fold(0, |tags, physical| {
        let register = &state.st[(physical + 8 - top(state)) % 8];
        let tag = if state.ftw >> physical & 1 == 0 { EMPTY } else { tag(register) };
        tags | tag << (2 * physical)
    })
}

const EMPTY: u16 = 3;

fn tag(register: &[u8; 16]) -> u16 {
    const VALID: u16 = 0;
    const ZERO: u16 = 1;
    const SPECIAL: u16 = 2;
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    let mantissa = u64::from_le_bytes(std::array::from_fn(|i| register[i]));
    match (exponent, mantissa >> 63) {
        (0, _) if mantissa == 0 => ZERO,
        (0 | 0x7fff, _) | (_, 0) => SPECIAL,
        _ => VALID,
    }
}

/// Bit i is 1 if physical register i is not empty.
fn abridged_tags(tags: u16) -> u8 {
    (0..8).fold(0, |bits, i| bits | u8::from(tags >> (2 * i) & 3 != EMPTY) << i)
}
