// The backup order of a key (holdfast-rendezvous-1), see docs/backup-order.md.
// As a program: node backup_order.mjs VECTORS.json  checks every vector and exits with 1 if one differs.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const GAMMA = 0x9e3779b97f4a7c15n;
const wrap = (number) => BigInt.asUintN(64, number);

function score(seed, server) {
  let z = wrap(seed + BigInt(server + 1) * GAMMA);
  z = wrap((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = wrap((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

/** All servers, best first. `key`: Buffer or Uint8Array; `servers`: how many there are. */
export function backupOrder(key, servers) {
  const seed = createHash("sha256").update(key).digest().readBigUInt64BE(0);
  const scores = Array.from({ length: servers }, (_, server) => score(seed, server));
  // BigInts do not subtract to the number that sort() wants.
  return scores.map((_, server) => server).sort((a, b) => (scores[a] > scores[b] ? -1 : 1));
}

/** The key of a session: tenant, a zero byte, session, in UTF-8. */
export const sessionKey = (tenant, session) => Buffer.from(`${tenant}\0${session}`, "utf8");

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { vectors } = JSON.parse(readFileSync(process.argv[2], "utf8"));
  const wrong = vectors.filter(({ key_hex: key, servers, order }) => {
    const found = backupOrder(Buffer.from(key, "hex"), servers).slice(0, order.length);
    return found.join() !== order.join();
  });
  console.log(`${vectors.length} vectors, ${wrong.length} differ`);
  process.exitCode = wrong.length === 0 && vectors.length > 0 ? 0 : 1;
}
