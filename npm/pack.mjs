// node pack.mjs FOLDER: puts the package, packed as it is published, where an application in that folder finds it.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const own = join(process.argv[2], "node_modules/tallymark");
const packed = mkdtempSync(join(tmpdir(), "tallymark-pack-"));
try {
  const args = ["pack", "--json", "--pack-destination", packed];
  const said = execFileSync("npm", args, { cwd: import.meta.dirname, stdio: ["ignore", "pipe", "ignore"] });
  const [{ filename }] = JSON.parse(said);
  rmSync(own, { recursive: true, force: true });
  mkdirSync(own, { recursive: true });
  // It depends on nothing, so that this is all of an installation.
  execFileSync("tar", ["-xzf", join(packed, filename), "-C", own, "--strip-components=1"]);
} finally {
  rmSync(packed, { recursive: true, force: true });
}
