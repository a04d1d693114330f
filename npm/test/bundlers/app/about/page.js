export const metadata = { title: "About" };

export default () => <p>About us</p>;
