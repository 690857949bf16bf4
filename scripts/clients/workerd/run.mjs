// Runs a Worker of this directory in workerd, against a mesh, case by case:
//   node run.mjs CLIENT CONFIG SERVICE=HOST:PORT...
// CONFIG is config.capnp or unstorage.capnp, and each of its external services gets the address of a node; a namespace of
// this run's own takes the place of "workerd-client". The packages workerd and, for unstorage, esbuild must be installed.
// workerd is ended with this process.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import workerd from "workerd"; // its default is the path of the executable
import { drive, namespace } from "./drive.mjs";

const [client, config, ...services] = process.argv.slice(2);
const here = (name) => fileURLToPath(new URL(name, import.meta.url));

if (config === "unstorage.capnp") {
  await build({ entryPoints: [here("unstorage.mjs")], bundle: true, format: "esm", outfile: here("unstorage.bundle.mjs"), logLevel: "warning" });
}
const title = await namespace(client, [...new Set(services.map((service) => service.split("=")[1]))]);
const file = here(`${title}.capnp`);
writeFileSync(file, readFileSync(here(config), "utf8").replaceAll("workerd-client", title));

const child = spawn(
  workerd.default,
  ["serve", file, "--control-fd=3", "--socket-addr=http=127.0.0.1:0", ...services.map((service) => `--external-addr=${service}`)],
  { stdio: ["ignore", "inherit", "inherit", "pipe"] },
);
const ended = once(child, "exit");
for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"]) {
  process.on(signal, () => {
    child.kill("SIGKILL");
    process.exit(1);
  });
}
try {
  const gone = ended.then(([code, signal]) => {
    throw new Error(`workerd ended: ${signal ?? code}`);
  });
  gone.catch(() => {}); // also when nobody is waiting for it
  const listening = (async () => {
    for await (const line of createInterface({ input: child.stdio[3] })) {
      const message = JSON.parse(line);
      if (message.event === "listen" && message.socket === "http") return message.port;
    }
    return gone;
  })();
  const port = await Promise.race([listening, gone]);
  // node:http and not fetch, which gives up on an answer that takes minutes.
  const get = (path) =>
    new Promise((resolve, reject) => {
      http.get({ host: "127.0.0.1", port, path }, (res) => {
        const pieces = [];
        res.on("data", (piece) => pieces.push(piece));
        res.on("error", reject);
        res.on("end", () => {
          const text = Buffer.concat(pieces).toString();
          try {
            resolve(JSON.parse(text));
          } catch {
            reject(new Error(`GET ${path}: ${res.statusCode} ${text.slice(0, 500)}`));
          }
        });
      }).on("error", reject);
    });
  await Promise.race([drive(client, get), gone]);
} finally {
  child.kill("SIGKILL");
  await ended;
}
