//! What is open, as the kernel counts it: TCP connections by their local port and by where they lead, with the bytes each has carried
//! (`sock_diag(7)`).

use std::collections::BTreeMap;
use std::net;

use anyhow::{Context as _, bail};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use crate::model::traffic::Carried;

/// What the kernel answers at once with at most.
const ANSWER: usize = 64 << 10;

/// Sums over connections.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// Of each local port: what came in by it is what goes to a cluster.
    pub by_local_port: BTreeMap<u16, Carried>,
    /// Of each address at the other end: what went out to it is.
    pub by_remote: BTreeMap<net::SocketAddr, Carried>,
}

impl Open {
    /// What there is now.
    pub fn look() -> anyhow::Result<Self> {
        let mut open = Self::default();
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            for response in dump(family, socket_id)? {
                let (carried, id) = (carried(&response), response.header.socket_id);
                *open.by_local_port.entry(id.source_port).or_default() += carried;
                let remote = net::SocketAddr::new(id.destination_address, id.destination_port);
                // Of a connection that was made from here, the kernel takes its beginning (SYN) for a byte that was acknowledged.
                let (to_cluster, from_cluster) = (carried.from_cluster.saturating_sub(1), carried.to_cluster);
                *open.by_remote.entry(remote).or_default() += Carried { to_cluster, from_cluster, ..carried };
            }
        }
        Ok(open)
    }
}

fn carried(response: &InetResponse) -> Carried {
    let info = response.nlas.iter().find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None });
    let (received, acked) = info.map_or((0, 0), |info| (info.bytes_received, info.bytes_acked));
    Carried { open: 1, to_cluster: received, from_cluster: acked, ..Carried::default() }
}

/// Asks for every connection of a family over which something can still come.
fn dump(family: u8, socket_id: SocketId) -> anyhow::Result<Vec<InetResponse>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).context("can't open a netlink socket")?;
    socket.bind_auto().context("can't bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("can't connect to the kernel")?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT,
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).context("can't ask the kernel for connections")?;

    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(ANSWER);
    loop {
        buffer.clear();
        let size = socket.recv(&mut buffer, 0).context("can't read the kernel's connections")?;
        let mut rest = buffer.get(..size).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).context("the kernel's answer can't be read")?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => found.push(*response),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(found),
                NetlinkPayload::Done(done) => bail!("the kernel gave up listing connections: {}", done.code),
                NetlinkPayload::Error(error) => bail!("the kernel doesn't list connections: {error}"),
                _ => {}
            }
            if length == 0 {
                break;
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn counts_what_is_open_and_what_it_carried() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().unwrap();
            assert_eq!(Open::look().unwrap().by_local_port.get(&address.port()), None);
            let mut client = TcpStream::connect(address).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(&[1; 1000]).unwrap();
            server.read_exact(&mut [0; 1000]).unwrap();
            server.write_all(&[1; 300]).unwrap();
            client.read_exact(&mut [0; 300]).unwrap();
            let start = Instant::now();
            let until = |want: Option<[u64; 3]>| loop {
                let open = Open::look().unwrap();
                let ends = [open.by_local_port.get(&address.port()), open.by_remote.get(&address)];
                let sums = ends.map(|end| end.map(|sum| [sum.open, sum.to_cluster, sum.from_cluster]));
                // What was read may not be acknowledged yet.
                if sums == [want; 2] {
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(5), "{sums:?} is not {want:?}");
            };
            until(Some([1, 1000, 300]));
            drop((client, server));
            until(None);
        }
    }
}
