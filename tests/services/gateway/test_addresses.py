from services.gateway.addresses import AddressBook


async def test_a_file_of_addresses_is_read_again_and_kept_while_it_is_broken(tmp_path):
    path = tmp_path / "index.json"
    book = AddressBook(["127.0.0.1:1", f"file:{path}"])
    assert await book.look() == ["127.0.0.1:1"]
    path.write_text('["127.0.0.1:2", "127.0.0.1:1"]')
    assert await book.look() == ["127.0.0.1:1", "127.0.0.1:2"]
    for broken in ('["127.', "{}", "[1]", "", "\xff"):
        path.write_text(broken)
        assert await book.look() == ["127.0.0.1:1", "127.0.0.1:2"]
    path.unlink()
    assert await book.look() == ["127.0.0.1:1", "127.0.0.1:2"]
    path.write_text("[]")
    assert await book.look() == ["127.0.0.1:1"]


async def test_a_name_stands_for_all_its_addresses():
    assert await AddressBook(["dns:///localhost:7"]).look() == ["127.0.0.1:7"]
    assert await AddressBook(["dns:///127.0.0.1:7"]).look() == ["127.0.0.1:7"]
    assert await AddressBook(["dns:///no-such-host.invalid:7"]).look() == []
