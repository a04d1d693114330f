// A server component; the provider in it is the boundary to the browser.

import { TallymarkProvider } from "tallymark/react";

export const metadata = { title: "Shop" };
// The collector is known only when the site runs.
export const dynamic = "force-dynamic";

export default function Layout({ children }) {
  const options = { endpoint: process.env.COLLECTOR, username: "shop", key: "k" };
  return (
    <html>
      <body>
        <TallymarkProvider options={options}>{children}</TallymarkProvider>
      </body>
    </html>
  );
}
