//! SIMD floating point: which instructions use MXCSR, and the exceptions that they raise.
//! SDM Vol. 1, "SSE and SSE2 Exceptions".

use iced_x86::Mnemonic;

/// MXCSR bits 5:0, the exceptions; their masks are 7 places up.
pub const EXCEPTIONS: u32 = 0x3f;
/// MXCSR: the exception masks.
pub const MASKS: u32 = EXCEPTIONS << MASK_SHIFT;
const MASK_SHIFT: u32 = 7;
/// MXCSR: flush to zero.
const FTZ: u32 = 1 << 15;
/// IE, DE, ZE: found before the operation.
const PRE_COMPUTATION: u32 = 0b111;
/// MXCSR.UE.
const UNDERFLOW: u32 = 1 << 4;
/// Bits that software may set: what FXSAVE stores as MXCSR_MASK.
pub const MXCSR_MASK: u32 = 0xffff;

/// Elements of a result that can be tiny.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tiny {
    format: Format,
    /// Only the lowest element is computed.
    scalar: bool,
}

/// An IEEE 754 format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Half,
    Single,
    Double,
}

/// What an instruction does with MXCSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arithmetic {
    /// The result can underflow, which an unmasked #U reports even when the tiny result is exact.
    tiny: Option<Tiny>,
}

/// Can the operation's result be tiny without being an operand?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Result {
    Rounded,
    Other,
}

/// Operations with an element suffix, in lower case and without the V of VEX.
#[rustfmt::skip]
const OPERATIONS: &[(&str, Result)] = &[
    ("add",    Result::Rounded), ("sub",    Result::Rounded), ("mul",   Result::Rounded),
    ("div",    Result::Rounded), ("addsub", Result::Rounded), ("hadd",  Result::Rounded),
    ("hsub",   Result::Rounded), ("dp",     Result::Rounded), ("sqrt",  Result::Other),
    ("min",    Result::Other),   ("max",    Result::Other),   ("cmp",   Result::Other),
    ("comi",   Result::Other),   ("ucomi",  Result::Other),   ("round", Result::Other),
    ("rcp",    Result::Other),   ("rsqrt",  Result::Other),
];
/// Fused multiply-add: the operations before the operand order and the suffix.
const FUSED: &[&str] = &["fmadd", "fmsub", "fnmadd", "fnmsub", "fmaddsub", "fmsubadd"];
/// Conversions that narrow: the result is rounded in this format.
const NARROWING: &[(&str, Tiny)] = &[
    ("cvtpd2ps", Tiny { format: Format::Single, scalar: false }),
    ("cvtsd2ss", Tiny { format: Format::Single, scalar: true }),
    ("cvtps2ph", Tiny { format: Format::Half, scalar: false }),
];
/// Conversions begin with this.
const CONVERSION: &str = "cvt";
/// Conversions that are exact, whatever MXCSR.
const EXACT: &[&str] = &["cvtdq2pd", "cvtpi2pd"];

/// What the instruction does with MXCSR; `None` if it does not use it.
pub fn arithmetic(mnemonic: Mnemonic) -> Option<Arithmetic> {
    let name = format!("{mnemonic:?}").to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    if let Some(&(_, tiny)) = NARROWING.iter().find(|(conversion, _)| *conversion == name) {
        return Some(Arithmetic { tiny: Some(tiny) });
    }
    if name.starts_with(CONVERSION) {
        return (!EXACT.contains(&name)).then_some(Arithmetic { tiny: None });
    }
    let (operation, tiny) = split_suffix(name)?;
    if FUSED.contains(&operation.trim_end_matches(|c: char| c.is_ascii_digit())) {
        return Some(Arithmetic { tiny: Some(tiny) });
    }
    let &(_, result) = OPERATIONS.iter().find(|(known, _)| *known == operation)?;
    Some(Arithmetic { tiny: (result == Result::Rounded).then_some(tiny) })
}

fn split_suffix(name: &str) -> Option<(&str, Tiny)> {
    let (operation, suffix) = name.split_at_checked(name.len().checked_sub(2)?)?;
    let (format, scalar) = match suffix {
        "ps" => (Format::Single, false),
        "ss" => (Format::Single, true),
        "pd" => (Format::Double, false),
        "sd" => (Format::Double, true),
        _ => return None,
    };
    Some((operation, Tiny { format, scalar }))
}

/// The MXCSR to run under: everything masked, no flag set. An unmasked underflow disables flush-to-zero.
pub const fn masked(guest: u32) -> u32 {
    let run = (guest & !EXCEPTIONS) | MASKS;
    if guest & (UNDERFLOW << MASK_SHIFT) == 0 { run & !FTZ } else { run }
}

/// The flags that the guest sees, given those that the masked run raised; and whether one is unmasked.
/// If an unmasked exception is found before the operation, none that would follow from it is reported.
pub fn raised(guest: u32, arithmetic: Arithmetic, run: u32, result: &[u8]) -> (u32, bool) {
    let unmasked = !(guest >> MASK_SHIFT) & EXCEPTIONS;
    let exact_tiny = unmasked & UNDERFLOW != 0 && arithmetic.tiny.is_some_and(|tiny| tiny.found_in(result));
    let flags = run & EXCEPTIONS | if exact_tiny { UNDERFLOW } else { 0 };
    let early = flags & PRE_COMPUTATION;
    let reported = if early & unmasked != 0 { early } else { flags };
    (reported, reported & unmasked != 0)
}

impl Tiny {
    /// Is a computed element denormal?
    fn found_in(self, result: &[u8]) -> bool {
        let (bytes, fraction) = match self.format {
            Format::Half => (2, 10),
            Format::Single => (4, 23),
            Format::Double => (8, 52),
        };
        let mut elements = result.chunks_exact(bytes).take(if self.scalar { 1 } else { usize::MAX });
        elements.any(|element| denormal(element, fraction))
    }
}

fn denormal(element: &[u8], fraction: u32) -> bool {
    let raw = element.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    let sign = 1 << (8 * element.len() - 1);
    let magnitude = raw & !sign;
    magnitude != 0 && magnitude >> fraction == 0
}
