//! Which control bits an instruction needs, and the exceptions if they are not set.

use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::Exception;

/// XCR0.SSE and XCR0.AVX. SDM Vol. 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features".
const XCR0_SSE_AVX: u64 = 0b110;

/// What gates an instruction. SDM Vol. 2, "Exceptions Type of Instructions", and Vol. 3, "Control Registers".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Works on general registers only: MOVNTI, CRC32.
    General,
    /// x87, and FXSAVE and FXRSTOR: #NM by EM or TS.
    X87,
    /// FWAIT: #NM by MP and TS together.
    Wait,
    /// MMX, and SSE instructions that touch MMX registers only.
    Mmx,
    /// Legacy-encoded instructions on XMM registers.
    Sse,
    /// VEX-encoded instructions; in protected mode only, which the decoder's caller has seen to.
    Avx,
    /// The XSAVE family.
    Xsave,
}

/// #UD or #NM, as the control registers say.
///
/// # Errors
/// The exception that the instruction raises instead of executing.
pub fn gate(class: Class, cr0: u64, cr4: u64, xcr0: u64) -> Result<(), Exception> {
    let undefined = match class {
        Class::General | Class::X87 | Class::Wait => false,
        Class::Mmx => cr0 & cr0::EM != 0,
        Class::Sse => cr0 & cr0::EM != 0 || cr4 & cr4::OSFXSR == 0,
        Class::Avx => cr4 & cr4::OSXSAVE == 0 || xcr0 & XCR0_SSE_AVX != XCR0_SSE_AVX,
        Class::Xsave => cr4 & cr4::OSXSAVE == 0,
    };
    if undefined {
        return Err(Exception::UD);
    }
    let unavailable = match class {
        Class::General => false,
        Class::X87 => cr0 & (cr0::EM | cr0::TS) != 0,
        Class::Wait => cr0 & cr0::MP != 0 && cr0 & cr0::TS != 0,
        Class::Mmx | Class::Sse | Class::Avx | Class::Xsave => cr0 & cr0::TS != 0,
    };
    if unavailable { Err(Exception::NM) } else { Ok(()) }
}
