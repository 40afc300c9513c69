//! Real Intel processors: CPUID leaves and VMX capability MSRs of one part each, embedded or from a file.

use crate::caps::Capabilities;
use crate::cpuid::{CpuidTable, Registers, Row, leaf};
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;
use thiserror::Error;

macro_rules! embedded {
    ($($name:ident)*) => {
        /// The embedded profiles' names and files, in the order of the names.
        const EMBEDDED: &[(&str, &str)] =
            &[$((stringify!($name), include_str!(concat!("../profiles/", stringify!($name), ".json")))),*];
    };
}

#[rustfmt::skip]
embedded! {
    alder_lake
    alder_lake_n
    arrow_lake
    broadwell
    broadwell_ep
    cannon_lake
    cascade_lake_sp
    clearwater_forest
    comet_lake
    conroe
    denverton
    diamond_rapids
    elkhart_lake
    emerald_rapids
    goldmont
    goldmont_plus
    granite_rapids
    haswell
    haswell_ep
    ice_lake
    ice_lake_sp
    ivy_bridge
    ivy_bridge_e
    ivy_bridge_ep
    kaby_lake
    lakefield
    lunar_lake
    meteor_lake
    nehalem
    panther_lake
    penryn
    penryn_xsave
    pentium4_presler
    raptor_lake
    rocket_lake
    sandy_bridge
    sandy_bridge_ep
    sapphire_rapids_sp
    sapphire_rapids_ws
    sierra_forest
    silvermont
    skylake
    skylake_sp
    tiger_lake
    tunnel_creek
    westmere_client
    westmere_ep
    wildcat_lake
    yonah
}

/// The schema that this code reads.
const SCHEMA: &str = "vmx-cpu-profile/1";

/// A number that the file holds as a hexadecimal string.
#[derive(Clone, Copy)]
struct Hex(u64);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        value.map(Self).ok_or_else(|| de::Error::custom(format!("{text:?} is not a hexadecimal number")))
    }
}

/// A hexadecimal number of 32 bits.
#[derive(Clone, Copy)]
struct Hex32(u32);

impl<'de> Deserialize<'de> for Hex32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Hex(value) = Hex::deserialize(deserializer)?;
        let narrow = u32::try_from(value);
        narrow.map(Self).map_err(|_| de::Error::custom(format!("{value:#x} has more than 32 bits")))
    }
}

#[derive(Deserialize)]
struct File {
    schema: String,
    name: String,
    display_name: String,
    microarchitecture: String,
    segment: String,
    launch_year: u32,
    signature: Hex32,
    address_bits: AddressBits,
    cpuid: Vec<FileRow>,
    vmx: BTreeMap<String, FileMsr>,
    #[serde(default)]
    related_msrs: BTreeMap<String, FileRelatedMsr>,
}

#[derive(Deserialize)]
struct AddressBits {
    physical: u32,
    linear: u32,
}

#[derive(Deserialize)]
struct FileRow {
    leaf: Hex32,
    subleaf: Hex32,
    eax: Hex32,
    ebx: Hex32,
    ecx: Hex32,
    edx: Hex32,
}

#[derive(Deserialize)]
struct FileMsr {
    msr: Hex32,
    present: bool,
    value: Option<Hex>,
}

#[derive(Deserialize)]
struct FileRelatedMsr {
    value: Hex,
}

/// A processor as its maker built it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The name on the command line.
    pub name: String,
    /// The part.
    pub display_name: String,
    /// The microarchitecture.
    pub microarchitecture: String,
    /// Desktop, mobile, server, workstation, embedded.
    pub segment: String,
    /// Year of launch.
    pub launch_year: u32,
    /// CPUID.1:EAX.
    pub signature: u32,
    /// The CPUID leaves as read on the part.
    pub cpuid: CpuidTable,
    /// The VMX capability MSRs as read on the part.
    pub capabilities: Capabilities,
    /// Other MSRs as read on the part, by index.
    pub related_msrs: BTreeMap<u32, u64>,
}

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// No embedded profile has the name.
    #[error("there is no processor {name:?}{}; there are {}", did_you_mean(.near), Profile::names().collect::<Vec<_>>().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that are like it.
        near: Vec<&'static str>,
    },
    /// The text is not a profile.
    #[error("this is not a processor profile: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The text is a profile, but contradicts itself or is of another version.
    #[error("this processor profile cannot be used: {0}")]
    Invalid(String),
}

fn did_you_mean(near: &[&str]) -> String {
    match near {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}

impl Profile {
    /// The names of the embedded profiles.
    pub fn names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|row| row.0)
    }

    /// The embedded profile with this name.
    ///
    /// # Errors
    /// There is none; the error lists names that are like it.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        match EMBEDDED.iter().find(|row| row.0 == name) {
            Some((_, text)) => Self::from_json(text),
            None => Err(ProfileError::Unknown { name: name.to_owned(), near: near(name) }),
        }
    }

    /// A profile of one's own.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_json(text: &str) -> Result<Self, ProfileError> {
        let file: File = serde_json::from_str(text)?;
        if file.schema != SCHEMA {
            return Err(ProfileError::Invalid(format!("its schema is {:?}, not {SCHEMA:?}", file.schema)));
        }
        Self::from_file(file)
    }

    fn from_file(file: File) -> Result<Self, ProfileError> {
        let AddressBits { physical, linear } = file.address_bits;
        if !(32..=52).contains(&physical) || ![32, 48, 57].contains(&linear) {
            let what = format!("addresses of {physical} and {linear} bits are none that a processor has");
            return Err(ProfileError::Invalid(what));
        }
        let cpuid = CpuidTable::new(file.cpuid.iter().map(FileRow::row).collect());
        if cpuid.get(leaf::FEATURES, 0).eax != file.signature.0 {
            return Err(ProfileError::Invalid("CPUID.1:EAX is not the signature".to_owned()));
        }
        let sizes = cpuid.get(leaf::ADDRESS_SIZES, 0).eax;
        if sizes != 0 && sizes & 0xff != physical {
            let what =
                format!("CPUID.80000008H tells {} bits of physical address, not {physical}", sizes & 0xff);
            return Err(ProfileError::Invalid(what));
        }
        let present = file.vmx.values().filter(|msr| msr.present);
        let msrs: BTreeMap<u32, u64> = present.filter_map(|msr| Some((msr.msr.0, msr.value?.0))).collect();
        let related = file.related_msrs.iter().map(|(index, msr)| Some((parse_index(index)?, msr.value.0)));
        let related_msrs = related.collect::<Option<_>>();
        Ok(Self {
            name: file.name,
            display_name: file.display_name,
            microarchitecture: file.microarchitecture,
            segment: file.segment,
            launch_year: file.launch_year,
            signature: file.signature.0,
            cpuid,
            capabilities: Capabilities::from_msrs(|index| msrs.get(&index).copied(), physical, linear),
            related_msrs: related_msrs.ok_or_else(|| {
                ProfileError::Invalid("an index in related_msrs is not hexadecimal".to_owned())
            })?,
        })
    }
}

impl FileRow {
    fn row(&self) -> Row {
        let registers = Registers { eax: self.eax.0, ebx: self.ebx.0, ecx: self.ecx.0, edx: self.edx.0 };
        Row { leaf: self.leaf.0, subleaf: self.subleaf.0, registers }
    }
}

fn parse_index(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The embedded names that are like `name`: a part of it, or few letters away.
fn near(name: &str) -> Vec<&'static str> {
    let name = name.to_lowercase().replace(['-', ' '], "_");
    let is_near =
        |known: &&str| known.contains(&name) || name.contains(*known) || distance(known, &name) <= 3;
    match name.len() {
        0 => Vec::new(),
        _ => Profile::names().filter(is_near).collect(),
    }
}

/// How many letters must be inserted, removed or replaced to make one word of the other.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
