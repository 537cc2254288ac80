//! From bytes to what they say: encodings, bounds, and lists of files merged as kubectl does.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use kube::config::Kubeconfig;
use serde_saphyr::{Error, Location, Options};

use crate::error::{Failure, Kind, Result};

/// The largest kubeconfig that is read: no Secret holds more.
pub const MAX_SIZE: usize = 1 << 20;
/// How deep lists and maps may lie within each other; a kubeconfig with exec arguments needs seven.
const MAX_DEPTH: usize = 32;
/// The longest name of a field that an error repeats: what is longer is none of a kubeconfig's fields.
const MAX_KEY: usize = 40;

pub(super) fn not_a_kubeconfig(why: &str) -> Failure {
    Failure::new(Kind::Kubeconfig, format!("this is no kubeconfig: {why}"), "give the file that kubectl uses for the cluster")
}

fn ambiguous(why: &str) -> Failure {
    Failure::new(Kind::Kubeconfig, format!("the kubeconfig is ambiguous: {why}"), "leave the one in it that is meant")
}

/// Reads one file. `directory` is where it stands: paths in it are relative to that.
///
/// # Errors
/// It is no kubeconfig. The text of the file is never in the error: it may be a credential in the wrong place.
pub fn document(bytes: &[u8], directory: &Path) -> Result<Kubeconfig> {
    if bytes.len() > MAX_SIZE {
        return Err(not_a_kubeconfig("it is larger than 1 MiB"));
    }
    let text = decode(bytes)?;
    let mut documents: Vec<Kubeconfig> =
        serde_saphyr::from_multiple_with_options(&text, options()).map_err(|error| unreadable(&error))?;
    let mut config = match documents.len() {
        0 => return Err(not_a_kubeconfig("it is empty")),
        1 => documents.remove(0),
        _ => return Err(ambiguous("it holds several documents, of which kubectl reads only the first")),
    };
    if let Some(kind) = config.kind.as_deref().filter(|kind| *kind != "Config") {
        return Err(not_a_kubeconfig(&format!("its kind is {kind:?} and not Config")));
    }
    if config.api_version.as_deref().is_some_and(|version| version != "v1") {
        return Err(not_a_kubeconfig("its apiVersion is not v1"));
    }
    unique("clusters", config.clusters.iter().map(|one| &one.name))?;
    unique("users", config.auth_infos.iter().map(|one| &one.name))?;
    unique("contexts", config.contexts.iter().map(|one| &one.name))?;
    // An empty one is none, also for a list of files: the next file's counts.
    config.current_context = config.current_context.filter(|name| !name.is_empty());
    for cluster in config.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        place(&mut cluster.certificate_authority, directory);
    }
    for user in config.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        for path in [&mut user.client_certificate, &mut user.client_key, &mut user.token_file] {
            place(path, directory);
        }
        // A command without a slash is one of PATH.
        if let Some(exec) = user.exec.as_mut().filter(|exec| exec.command.as_deref().is_some_and(|command| command.contains('/'))) {
            place(&mut exec.command, directory);
        }
    }
    Ok(config)
}

/// Merges the files of a list as kubectl does: of a name that is in several, the first file's entry counts, and nothing of the
/// others' is added to it.
pub fn merged(documents: Vec<Kubeconfig>) -> Result<Kubeconfig> {
    documents
        .into_iter()
        .try_fold(Kubeconfig::default(), Kubeconfig::merge)
        .map_err(|_| not_a_kubeconfig("its files are not of one kind and version"))
}

/// Windows PowerShell writes UTF-16, and editors there a byte order mark before UTF-8.
fn decode(bytes: &[u8]) -> Result<Cow<'_, str>> {
    let no_text = || not_a_kubeconfig("it is no text (UTF-8, or UTF-16 with a byte order mark)");
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks::<2>();
        let text = String::from_utf16(&units.iter().map(|pair| unit(*pair)).collect::<Vec<_>>());
        text.ok().filter(|_| rest.is_empty()).map(Cow::Owned).ok_or_else(no_text)
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => std::str::from_utf8(rest).map(Cow::Borrowed).map_err(|_| no_text()),
    }
}

/// Bounds that a parser keeps while it parses, so that no text can exhaust the stack, the memory or anybody's patience.
/// A field given twice is an error, while kubectl takes the last one without a word.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_documents: 2,
            max_nodes: 100_000,
            max_anchors: 100,
            max_aliases: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        with_snippet: false,
    }
}

fn unreadable(error: &Error) -> Failure {
    let at = |location: Option<Location>| {
        location.map(|place| format!(" (line {}, column {})", place.line(), place.column())).unwrap_or_default()
    };
    match error.without_snippet() {
        Error::DuplicateMappingKey { key, location } => {
            let key = key.as_deref().filter(|key| key.len() <= MAX_KEY).map(|key| format!(" {key:?}")).unwrap_or_default();
            ambiguous(&format!("the field{key} is given twice{}", at(Some(*location))))
        }
        Error::Budget { .. } => not_a_kubeconfig("it is nested too deeply or has too many parts"),
        other => not_a_kubeconfig(&format!("it does not parse{}", at(other.location()))),
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ambiguous(&format!("two of its {what} are called {name:?}")));
        }
    }
    Ok(())
}

/// Makes a path absolute, or as absolute as the directory is.
fn place(path: &mut Option<String>, directory: &Path) {
    if let Some(path) = path.as_mut().filter(|path| !path.is_empty()) {
        *path = directory.join(&path).to_string_lossy().into_owned();
    }
}
