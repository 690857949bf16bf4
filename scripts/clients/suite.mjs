// Cases of one client: each prints a line `ok CLIENT CASE` or `FAILED CLIENT CASE`, and a failure sets the exit status.
// CLIENT has no blanks. Names of cases are unique within a client; scripts/clients/cases.txt lists them all.
export function suite(client) {
  return async (name, run) => {
    try {
      await run();
      console.log(`ok ${client} ${name}`);
    } catch (err) {
      process.exitCode = 1;
      console.log(`FAILED ${client} ${name}`);
      console.error(`--- ${client} ${name}`);
      console.error(err);
    }
  };
}
