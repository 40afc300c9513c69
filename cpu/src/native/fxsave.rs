//! The 512-byte image of FXSAVE and FXRSTOR. SDM Vol. 1, "Saving and Restoring the x87 FPU, MMX, SSE State".

use super::simd::MXCSR_MASK;
use super::x87;
use vmcs12::cpu_state::VectorState;

/// Length of the image.
pub const LEN: usize = 512;
/// Offset of MXCSR.
pub const MXCSR: usize = 24;
const MXCSR_MASK_AT: usize = 28;
const STACK: usize = 32;
/// Offset of XMM0.
pub const XMM: usize = 160;

/// An image, aligned for the host's own instructions.
#[repr(C, align(16))]
pub struct Image(pub [u8; LEN]);

/// Operand size, which decides how the pointers are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PointerWidth {
    /// FXSAVE: 32-bit offsets and selectors.
    Selectors,
    /// FXSAVE64: 64-bit addresses.
    Flat,
}

/// Bytes 0 to 23 and the stack: the x87 state.
pub fn put_x87(state: &VectorState, width: PointerWidth, image: &mut [u8; LEN]) {
    image[0..2].copy_from_slice(&state.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&state.fsw.to_le_bytes());
    image[4..6].copy_from_slice(&u16::from(state.ftw).to_le_bytes());
    image[6..8].copy_from_slice(&state.fop.to_le_bytes());
    match width {
        PointerWidth::Flat => {
            image[8..16].copy_from_slice(&state.fip.to_le_bytes());
            image[16..24].copy_from_slice(&state.fdp.to_le_bytes());
        }
        PointerWidth::Selectors => {
            put_pointer(&mut image[8..16], state.fip, state.fcs);
            put_pointer(&mut image[16..24], state.fdp, state.fds);
        }
    }
    image[STACK..XMM].copy_from_slice(state.st.as_flattened());
}

fn put_pointer(at: &mut [u8], offset: u64, selector: u16) {
    at[0..4].copy_from_slice(&(offset as u32).to_le_bytes());
    at[4..8].copy_from_slice(&u32::from(selector).to_le_bytes());
}

/// MXCSR and its mask.
pub fn put_mxcsr(state: &VectorState, image: &mut [u8; LEN]) {
    image[MXCSR..MXCSR_MASK_AT].copy_from_slice(&state.mxcsr.to_le_bytes());
    image[MXCSR_MASK_AT..STACK].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

/// The first `count` XMM registers: 16 in 64-bit mode, 8 elsewhere.
pub fn put_xmm(state: &VectorState, count: usize, image: &mut [u8; LEN]) {
    for (register, at) in state.ymm.iter().zip(image[XMM..].chunks_exact_mut(16)).take(count) {
        at.copy_from_slice(&register[..16]);
    }
}

/// Loads the x87 state; the 6 bytes after each stack register are ignored.
pub fn get_x87(state: &mut VectorState, width: PointerWidth, image: &[u8; LEN]) {
    let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let dword = |at: usize| u64::from(word(at)) | u64::from(word(at + 2)) << 16;
    state.fsw = word(2);
    state.ftw = image[4];
    state.fop = word(6) & 0x7ff;
    (state.fip, state.fcs, state.fdp, state.fds) = match width {
        PointerWidth::Flat => (dword(8) | dword(12) << 32, 0, dword(16) | dword(20) << 32, 0),
        PointerWidth::Selectors => (dword(8), word(12), dword(16), word(20)),
    };
    for (register, from) in state.st.iter_mut().zip(image[STACK..XMM].chunks_exact(16)) {
        *register = [0; 16];
        register[..10].copy_from_slice(&from[..10]);
    }
    x87::load_control(state, word(0));
}

/// The image's MXCSR.
pub fn mxcsr(image: &[u8; LEN]) -> u32 {
    u32::from_le_bytes([image[MXCSR], image[MXCSR + 1], image[MXCSR + 2], image[MXCSR + 3]])
}

/// Loads the first `count` XMM registers.
pub fn get_xmm(state: &mut VectorState, count: usize, image: &[u8; LEN]) {
    for (register, from) in state.ymm.iter_mut().zip(image[XMM..].chunks_exact(16)).take(count) {
        register[..16].copy_from_slice(from);
    }
}
