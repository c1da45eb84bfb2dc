"""What a person looks at: pictures of the tokens that survive."""

if __name__ != "vtprune.demo":
    raise ImportError("this folder is the package 'vtprune.demo': import it by that name")
