// The same, where no wasm is allowed.

import Page from "../page.js";

export default function Strict() {
  return (
    <>
      <meta httpEquiv="Content-Security-Policy" content="script-src 'self' 'unsafe-inline'" />
      <Page />
    </>
  );
}
