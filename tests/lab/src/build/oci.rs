//! Container images without a container engine: an OCI archive of one layer, as `ctr images import` takes it.
//!
//! Such an archive is a tar of the layer (itself a tar), three JSON documents that name each other by SHA-256, and a
//! version marker. The same spec and files give the same bytes.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What an image holds and how it runs.
#[derive(Clone, Debug, Default)]
pub struct ImageSpec {
    /// The whole name, as a pod's `image` means it: `docker.io/oamdev/vela-core:v1.10.9`.
    pub name: String,
    /// Files and directories; directories above them are made as needed.
    pub entries: Vec<Entry>,
    /// The command's fixed part.
    pub entrypoint: Vec<String>,
    /// Arguments a pod's `args` replace.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// User, as `65532` or `65532:65532`; empty for root.
    pub user: String,
}

/// One file or directory of an image, owned by root.
#[derive(Clone, Debug)]
pub struct Entry {
    path: String,
    mode: u32,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Directory,
    File(PathBuf),
    Text(String),
}

impl Entry {
    /// The program `source` at the absolute `path`, readable and executable by all.
    #[must_use]
    pub fn program(path: &str, source: &Path) -> Self {
        Self::new(path, 0o755, Content::File(source.to_owned()))
    }

    /// A text file that all can read.
    #[must_use]
    pub fn text(path: &str, text: &str) -> Self {
        Self::new(path, 0o644, Content::Text(text.to_owned()))
    }

    /// A directory with this mode (`0o1777` for a /tmp).
    #[must_use]
    pub fn directory(path: &str, mode: u32) -> Self {
        Self::new(path, mode, Content::Directory)
    }

    fn new(path: &str, mode: u32, content: Content) -> Self {
        Self { path: path.trim_start_matches('/').to_owned(), mode, content }
    }

    /// The file on this machine it is copied from, if any.
    pub(super) fn source(&self) -> Option<&Path> {
        match &self.content {
            Content::File(source) => Some(source),
            Content::Directory | Content::Text(_) => None,
        }
    }
}

/// Writes the image as the file `out`.
///
/// # Errors
/// When a source can't be read or `out` can't be written.
pub fn image(spec: &ImageSpec, out: &Path) -> Result<()> {
    let problem = || format!("can't write the image {} to {}", spec.name, out.display());
    // The layer's digest is its name in the archive, so it is written beside it first.
    let mut layer = tempfile::tempfile_in(out.parent().unwrap_or(Path::new("."))).with_context(problem)?;
    let (digest, size) = write_layer(spec, &mut layer)?;
    let config = document(&config(spec, &digest));
    let manifest = document(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &sha256(&config), config.len() as u64),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &digest, size)],
    }));
    let mut reference = descriptor("application/vnd.oci.image.manifest.v1+json", &sha256(&manifest), manifest.len() as u64);
    // containerd takes the first for the image's name as it is, other tools the second.
    reference["annotations"] = json!({"io.containerd.image.name": spec.name, "org.opencontainers.image.ref.name": spec.name});
    let index = document(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [reference],
    }));
    let mut write = || -> io::Result<()> {
        let mut archive = tar::Builder::new(io::BufWriter::new(File::create(out)?));
        append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut archive, "index.json", 0o644, &index)?;
        append(&mut archive, &blob(&sha256(&manifest)), 0o644, &manifest)?;
        append(&mut archive, &blob(&sha256(&config)), 0o644, &config)?;
        layer.rewind()?;
        archive.append_data(&mut header(0o644, size), blob(&digest), &mut layer)?;
        archive.into_inner()?.into_inner()?.sync_all()
    };
    write().with_context(problem)
}

fn config(spec: &ImageSpec, layer: &str) -> Value {
    json!({
        "architecture": architecture(std::env::consts::ARCH),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": spec.user,
            "Env": spec.environment,
            "Entrypoint": spec.entrypoint,
            "Cmd": spec.command,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "xregion lab"}],
    })
}

/// OCI's word for a processor, which is Go's.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

fn document(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    name_of(&Sha256::digest(bytes))
}

fn name_of(digest: &[u8]) -> String {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// Writes the layer and returns its digest and size.
fn write_layer(spec: &ImageSpec, out: &mut File) -> Result<(String, u64)> {
    let problem = || format!("can't write the layer of the image {}", spec.name);
    let mut layer = tar::Builder::new(io::BufWriter::with_capacity(1 << 16, Hashed::new(out)));
    let mut entries: Vec<&Entry> = spec.entries.iter().collect();
    let above = directories_above(&entries);
    entries.extend(&above);
    // A directory comes before what is in it.
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    for entry in entries {
        match &entry.content {
            Content::Directory => {
                let mut header = header(entry.mode, 0);
                header.set_entry_type(tar::EntryType::Directory);
                layer.append_data(&mut header, format!("{}/", entry.path), io::empty()).with_context(problem)?;
            }
            Content::Text(text) => {
                append(&mut layer, &entry.path, entry.mode, text.as_bytes()).with_context(problem)?;
            }
            Content::File(source) => {
                let problem = || format!("can't put {} into the image {}", source.display(), spec.name);
                let file = File::open(source).with_context(problem)?;
                let size = file.metadata().with_context(problem)?.len();
                // As long as the header says, also when the file grows meanwhile.
                layer.append_data(&mut header(entry.mode, size), &entry.path, file.take(size)).with_context(problem)?;
            }
        }
    }
    let hashed = layer.into_inner().and_then(|buffer| buffer.into_inner().map_err(Into::into)).with_context(problem)?;
    Ok((name_of(&hashed.hash.finalize()), hashed.size))
}

/// The directories no entry mentions and some entry needs.
fn directories_above(entries: &[&Entry]) -> Vec<Entry> {
    let mut missing: Vec<String> = entries
        .iter()
        .flat_map(|entry| Path::new(&entry.path).ancestors().skip(1))
        .map(|path| path.display().to_string())
        .filter(|path| !path.is_empty() && entries.iter().all(|entry| entry.path != *path))
        .collect();
    missing.sort();
    missing.dedup();
    missing.iter().map(|path| Entry::directory(path, 0o755)).collect()
}

fn append(archive: &mut tar::Builder<impl Write>, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(mode, bytes.len() as u64), path, bytes)
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Counts and hashes what goes through to a file.
struct Hashed<'a> {
    file: &'a mut File,
    hash: Sha256,
    size: u64,
}

impl<'a> Hashed<'a> {
    fn new(file: &'a mut File) -> Self {
        Self { file, hash: Sha256::new(), size: 0 }
    }
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, (entry.header().mode().unwrap(), bytes));
        }
        files
    }

    fn spec(program: &Path) -> ImageSpec {
        ImageSpec {
            name: "docker.io/lab/example:v1".into(),
            entries: vec![
                Entry::program("/usr/bin/example", program),
                Entry::text("/etc/passwd", "nobody\n"),
                Entry::directory("/tmp", 0o1777),
            ],
            entrypoint: vec!["/usr/bin/example".into()],
            command: vec!["serve".into()],
            environment: vec!["PATH=/usr/bin".into()],
            user: "65532".into(),
        }
    }

    /// Follows a descriptor and checks that it tells the truth.
    fn follow<'a>(files: &'a BTreeMap<String, (u32, Vec<u8>)>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap();
        let (_, bytes) = &files[&blob(digest)];
        assert_eq!(sha256(bytes), digest);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    #[test]
    fn index_manifest_config_and_layer_lead_to_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, vec![7_u8; 100_000]).unwrap();
        let out = directory.path().join("image.tar");
        image(&spec(&program), &out).unwrap();

        let archive = files(&fs::read(&out).unwrap());
        assert_eq!(archive.len(), 5, "{:?}", archive.keys());
        assert_eq!(archive["oci-layout"].1, br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index: Value = serde_json::from_slice(&archive["index.json"].1).unwrap();
        let reference = &index["manifests"][0];
        assert_eq!(reference["annotations"]["io.containerd.image.name"], "docker.io/lab/example:v1");
        let manifest: Value = serde_json::from_slice(follow(&archive, reference)).unwrap();
        let config: Value = serde_json::from_slice(follow(&archive, &manifest["config"])).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/example"]));
        assert_eq!(config["config"]["User"], "65532");

        let layer = files(follow(&archive, &manifest["layers"][0]));
        let listed: Vec<(&str, u32, usize)> =
            layer.iter().map(|(path, (mode, bytes))| (path.as_str(), *mode, bytes.len())).collect();
        assert_eq!(
            listed,
            [
                ("etc/", 0o755, 0),
                ("etc/passwd", 0o644, 7),
                ("tmp/", 0o1777, 0),
                ("usr/", 0o755, 0),
                ("usr/bin/", 0o755, 0),
                ("usr/bin/example", 0o755, 100_000),
            ]
        );
    }

    #[test]
    fn the_same_spec_gives_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, "x").unwrap();
        let bytes = ["a.tar", "b.tar"].map(|name| {
            let out = directory.path().join(name);
            image(&spec(&program), &out).unwrap();
            fs::read(out).unwrap()
        });
        assert_eq!(bytes[0], bytes[1]);
    }

    #[test]
    fn a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = image(&spec(Path::new("/no/such/program")), &directory.path().join("out")).unwrap_err();
        assert_eq!(error.to_string(), "can't put /no/such/program into the image docker.io/lab/example:v1");
    }

    #[test]
    fn processors_have_their_oci_names() {
        assert_eq!(["x86_64", "aarch64", "riscv64"].map(architecture), ["amd64", "arm64", "riscv64"]);
    }
}
