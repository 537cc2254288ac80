//! Files of the machine this runs on: kubeconfigs and what they refer to, read; and a kubeconfig, written.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use kube::config::Kubeconfig;
use secrecy::{ExposeSecret as _, SecretString};

use crate::error::{Failure, Kind, Result};
use crate::model::kubeconfig::{self, MAX_SIZE};

/// Reads a file that a kubeconfig may be in or refer to, up to the largest size of a kubeconfig.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_SIZE { Err(io::Error::other("it is larger than 1 MiB")) } else { Ok(bytes) }
}

/// Reads a kubeconfig: a file, or a list of files as in `$KUBECONFIG`, of which kubectl passes over those that don't exist.
pub fn kubeconfig(list: &Path) -> Result<Kubeconfig> {
    let mut documents = Vec::new();
    let mut missing = None;
    for path in std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty()) {
        let name = path.display().to_string();
        match read(&path) {
            Ok(bytes) => {
                let directory = path.parent().unwrap_or(Path::new(""));
                documents.push(kubeconfig::document(&bytes, directory).map_err(|failure| failure.about(&name))?);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => missing = missing.or(Some((name, error))),
            Err(error) => return Err(unreadable(&name, &error)),
        }
    }
    match missing {
        Some((name, error)) if documents.is_empty() => Err(unreadable(&name, &error)),
        _ => kubeconfig::merged(documents).map_err(|failure| failure.about(&list.display().to_string())),
    }
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::new(Kind::Kubeconfig, format!("{name} can't be read: {error}"), "give the path of the cluster's kubeconfig")
}

/// Writes a kubeconfig that only its owner may read. A file that exists may be somebody's only way into a cluster.
pub fn write_new(path: &Path, text: &SecretString) -> Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.expose_secret().as_bytes()));
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => exists(path),
        _ => Failure::new(
            Kind::Output,
            format!("{} can't be written: {error}", path.display()),
            "give a path where a file can be written",
        ),
    })
}

/// The refusal to overwrite a file.
pub fn exists(path: &Path) -> Failure {
    Failure::new(Kind::Output, format!("{} exists already", path.display()), "give another path, or remove that file")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_its_owner_s_alone_and_overwrites_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        write_new(&path, &"secret".to_owned().into()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let failure = write_new(&path, &"other".to_owned().into()).unwrap_err();
        assert_eq!(failure.kind, Kind::Output);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "secret");
    }

    #[test]
    fn no_more_than_a_kubeconfig_s_size_is_read() {
        assert!(read(Path::new("/dev/zero")).is_err());
        assert_eq!(kubeconfig(Path::new("/nonexistent:/nonexistent-too")).unwrap_err().kind, Kind::Kubeconfig);
        assert_eq!(kubeconfig(Path::new("/")).unwrap_err().kind, Kind::Kubeconfig);
    }
}
